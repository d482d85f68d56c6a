"""Tasks and pools: what is saved comes back, what is wrong is named, and what is drawn is repeatable."""

import hashlib
import shutil
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from jupyter_env.answer import Integer, ListOf, Named, NotApplicable, Number, Text
from jupyter_env.task import TASK_SCHEMA_VERSION, DataFile, Task, TaskDataError, TaskError, TaskPool, sha256_of

SHA = "0" * 64


def task(name: str = "one", **fields: object) -> Task:
    return Task(**{"id": name, "question": "How many?", "answer": Integer(value=1), **fields})


def line(**fields: object) -> bytes:
    """A pool file's line: a good task with some fields replaced, or left out where the value is `...`."""
    row = {"id": "one", "question": "How many?", "answer": {"type": "integer", "value": 1}, **fields}
    return msgspec.json.encode({key: value for key, value in row.items() if value is not ...}) + b"\n"


@pytest.fixture
def varied(pool: TaskPool) -> TaskPool:
    """A pool in which every field is used and no two rows have the same shape."""
    named = Named(
        values={"mean": Number(value=34.65, decimals=2), "x": ListOf(items=(Text(value="ä, ö"),), ordered=False)}
    )
    more = [
        task("named", answer=named, metadata={"deep": {"a": [1, None, "ü"]}}, reference_code="print(1)"),
        task("none", answer=NotApplicable(), metadata={"deep": 5}, weight=0.0, provenance="simulated"),
        task("all", level="expert", dataset="d", source="s 1.0", licence="CC0-1.0", guidelines="g\n", weight=2.5),
    ]
    return TaskPool([*pool, *more], pool.data_root)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_saved_pool_comes_back_and_can_be_moved(varied: TaskPool, tmp_path: Path, ending: str):
    varied.save(tmp_path / "saved" / f"pool{ending}")
    shutil.rmtree(varied.data_root)
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    loaded = TaskPool.load(tmp_path / "moved" / f"pool{ending}")
    assert list(loaded) == list(varied)
    paths = [loaded.file_path(file) for task in loaded for file in task.files]
    assert {path.parent.name for path in paths} == {"data", "deep"}
    assert all(path.is_relative_to((tmp_path / "moved").resolve()) for path in paths)


def test_a_saved_file_is_read_anew_after_it_was_replaced(tmp_path: Path):
    for name in ("first", "second"):
        TaskPool([task(name)]).save(tmp_path / "pool.parquet")
        assert [task.id for task in TaskPool.load(tmp_path / "pool.parquet")] == [name]


def test_saving_twice_to_the_same_place_changes_nothing(varied: TaskPool, tmp_path: Path):
    target = tmp_path / "out" / "pool.jsonl"
    varied.save(target)
    before = target.read_bytes()
    varied.save(target)
    TaskPool.load(target).save(target)
    assert target.read_bytes() == before


def test_blank_lines_are_skipped(tmp_path: Path):
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b"\n" + line(id="a") + b"  \n" + line(id="b") + b"\n")
    assert [task.id for task in TaskPool.load(path)] == ["a", "b"]


BAD_LINES = {
    "no JSON": (b"{oops\n", "one JSON object"),
    "cut short": (line()[:-20], "one JSON object"),
    "no UTF-8": (b'{"id": "\xff"}\n', "one JSON object"),
    "a list": (b"[1]\n", "object"),
    "null": (b"null\n", "object"),
    "missing field": (line(question=...), "question"),
    "unknown field": (line(quesion="typo"), "quesion"),
    "wrong type": (line(question=5), "$.question"),
    "blank question": (line(question="  "), "question"),
    "blank id": (line(id=""), "id"),
    "wrong level": (line(level="extreme"), "$.level"),
    "negative weight": (line(weight=-1), "weight"),
    "infinite weight": (line().replace(b'"id"', b'"weight":1e999,"id"'), "weight"),
    "answer without a type": (line(answer={"value": 1}), "answer"),
    "answer of an unknown type": (line(answer={"type": "guess", "value": 1}), "answer"),
    "answer with a wrong value": (line(answer={"type": "integer", "value": "x"}), "$.answer.value"),
    "file without sha256": (line(files=[{"path": "a.csv"}]), "sha256"),
    "file with a bad sha256": (line(files=[{"path": "a.csv", "sha256": "abc"}]), "sha256"),
    "file that leads out": (line(files=[{"path": "../a.csv", "sha256": SHA}]), "$.files[0]"),
    "version of a wrong type": (line(schema_version="1"), "schema_version"),
    "newer version": (line(schema_version=TASK_SCHEMA_VERSION + 1, brand_new=1), "install a newer jupyter-env"),
}


@pytest.mark.parametrize(("bad", "says"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, bad: bytes, says: str):
    path = tmp_path / "pool.jsonl"
    path.write_bytes(line(id="good") + bad)
    with pytest.raises(TaskError) as caught:
        TaskPool.load(path)
    message = str(caught.value)
    assert f"{path}, line 2" in message and says in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": "{oops"}, "answer"),
        ({"question": 5}, "question"),
        ({"quesion": "x"}, "quesion"),
        ({"id": None}, "id"),
    ],
)
def test_a_bad_parquet_row_is_named(tmp_path: Path, change: dict[str, object], says: str):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "pool.parquet"
    row = {"id": "one", "question": "How many?", "answer": '{"type": "integer", "value": 1}', **change}
    datasets.Dataset.from_list([row]).to_parquet(str(path))
    with pytest.raises(TaskError) as caught:
        TaskPool.load(path)
    assert f"{path}, row 1" in str(caught.value) and says in str(caught.value)


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet", "missing", "a/b/c", "pool.csv", "."])
def test_a_source_that_is_no_pool(tmp_path: Path, name: str):
    (tmp_path / "pool.csv").write_text("a\n")
    with pytest.raises(TaskError, match="expected a pool's file"):
        TaskPool.load(tmp_path / name)


def test_another_ending_is_refused_when_saving(tmp_path: Path, pool: TaskPool):
    with pytest.raises(TaskError, match=r"\.jsonl or \.parquet"):
        pool.save(tmp_path / "pool.csv")


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "..", "", ".", "a\\b", "a\0b", "C:x", "C:/x"])
def test_an_unsafe_path_is_refused(path: str):
    with pytest.raises(ValueError, match="`path`"):
        DataFile(path=path, sha256=SHA)


@given(st.text(max_size=30))
def test_no_accepted_path_leads_out(path: str):
    try:
        file = DataFile(path=path, sha256=SHA)
    except ValueError:
        return
    root = Path("/root-of-data")
    assert (root / file.path).is_relative_to(root) and ".." not in (root / file.path).parts


class TestTables:
    @pytest.fixture
    def file(self, pool: TaskPool) -> DataFile:
        return pool.get("rows").files[0]

    def test_missing(self, pool: TaskPool, file: DataFile):
        path = pool.data_root / file.path
        path.unlink()
        with pytest.raises(TaskDataError, match="missing") as caught:
            pool.file_path(file)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"species,mass\n", b"species,mass\nAdelie,3700\nGentoo,5001\n"])
    def test_truncated_or_changed_even_after_a_good_look(self, pool: TaskPool, file: DataFile, content: bytes):
        path = pool.file_path(file)
        path.write_bytes(content)
        with pytest.raises(TaskDataError) as caught:
            pool.file_path(file)
        message = str(caught.value)
        assert str(path) in message and file.sha256 in message and hashlib.sha256(content).hexdigest() in message

    def test_a_folder_in_its_place(self, pool: TaskPool, file: DataFile):
        path = pool.data_root / file.path
        path.unlink()
        path.mkdir()
        with pytest.raises(TaskDataError):
            pool.file_path(file)

    def test_a_link_is_followed_and_its_content_checked(self, pool: TaskPool, file: DataFile, tmp_path: Path):
        """The hub's cache holds links to files of its own."""
        path = pool.data_root / file.path
        blob = tmp_path / "blob"
        path.rename(blob)
        path.symlink_to(blob)
        assert pool.file_path(file).read_bytes() == blob.read_bytes()
        path.unlink()
        path.symlink_to("/etc/passwd")
        with pytest.raises(TaskDataError, match="sha256"):
            pool.file_path(file)

    def test_a_data_folder_that_is_itself_a_symlink(self, pool: TaskPool, file: DataFile, tmp_path: Path):
        (tmp_path / "link").symlink_to(pool.data_root)
        assert TaskPool(pool, tmp_path / "link").file_path(file).is_file()

    def test_saving_does_not_copy_a_changed_table(self, pool: TaskPool, file: DataFile, tmp_path: Path):
        (pool.data_root / file.path).write_text("other\n")
        with pytest.raises(TaskDataError):
            pool.save(tmp_path / "out" / "pool.jsonl")

    def test_saving_does_not_overwrite_a_different_file(self, pool: TaskPool, file: DataFile, tmp_path: Path):
        target = tmp_path / "out" / "data" / file.path
        target.parent.mkdir(parents=True)
        target.write_text("mine\n")
        with pytest.raises(TaskError, match="in the way"):
            pool.save(tmp_path / "out" / "pool.jsonl")
        assert target.read_text() == "mine\n"


class TestPool:
    def test_an_empty_pool(self, tmp_path: Path):
        empty = TaskPool([])
        assert (
            len(empty) == 0 and list(empty.sample(0, seed=1)) == [] and [*map(len, empty.split(0.5, seed=1))] == [0, 0]
        )
        empty.save(tmp_path / "empty.jsonl")
        assert TaskPool.load(tmp_path / "empty.jsonl") == empty
        with pytest.raises(TaskError):
            empty.sample(1, seed=1)
        with pytest.raises(TaskError, match="'x'"):
            empty.get("x")

    def test_duplicate_ids(self, tmp_path: Path):
        with pytest.raises(TaskError, match="'twice'"):
            TaskPool([task("once"), task("twice"), task("twice")])
        (tmp_path / "pool.jsonl").write_bytes(line() + line())
        with pytest.raises(TaskError, match="'one'"):
            TaskPool.load(tmp_path / "pool.jsonl")

    def test_files_without_a_data_root(self):
        with pytest.raises(TaskError, match="data_root"):
            TaskPool([task(files=(DataFile(path="a.csv", sha256=SHA),))])

    def test_get(self, pool: TaskPool):
        assert pool.get("sum") is pool[2]
        with pytest.raises(TaskError) as caught:
            pool.get("sums")
        assert "'sums'" in str(caught.value) and "'rows'" in str(caught.value) and "3" in str(caught.value)

    def test_slices_and_filters_stay_pools_with_their_tables(self, pool: TaskPool):
        for part in (pool[:1], pool.filter(lambda task: task.level == "hard"), pool[::-1]):
            assert isinstance(part, TaskPool) and part.data_root == pool.data_root
        assert [task.id for task in pool[1:]] == ["sizes", "sum"]
        assert [task.id for task in pool.filter(lambda task: bool(task.files))] == ["rows", "sizes"]
        assert pool[-1].id == "sum" and pool.get("rows") in pool

    def test_immutable(self, pool: TaskPool):
        with pytest.raises(AttributeError):
            pool[0].question = "other"
        with pytest.raises(TypeError):
            pool[0] = pool[1]


class TestSample:
    @given(st.integers(0, 20), st.integers(0, 2**32))
    def test_distinct_and_repeatable(self, n: int, seed: int):
        pool = TaskPool([task(str(number)) for number in range(20)])
        drawn = [task.id for task in pool.sample(n, seed)]
        assert len(set(drawn)) == n and drawn == [task.id for task in pool.sample(n, seed)]

    def test_by_weight(self):
        pool = TaskPool([task("never", weight=0), task("rare", weight=1), task("often", weight=4)])
        first = Counter(pool.sample(1, seed)[0].id for seed in range(2000))
        assert first["never"] == 0 and 1500 < first["often"] < 1700  # 1600 expected, deviation 18

    @pytest.mark.parametrize("n", [-1, 3])
    def test_more_than_can_be_drawn(self, n: int):
        with pytest.raises(TaskError, match="2"):
            TaskPool([task("a"), task("b"), task("never", weight=0)]).sample(n, seed=0)


def test_one_path_has_one_content():
    one, other = (DataFile(path="t.csv", sha256=digit * 64) for digit in "01")
    with pytest.raises(TaskError, match=r"different contents of 't\.csv'"):
        TaskPool([task("a", files=(one,)), task("b", files=(other,))], data_root="/nowhere")


TABLES = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("0123")), max_size=3)


@given(
    st.lists(st.tuples(TABLES, st.sampled_from(["", "", "x", "y", "z"])), max_size=12), st.floats(0, 1), st.integers()
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.filter_too_much])
def test_the_halves_of_a_split_share_nothing(tasks: list[tuple[list[tuple[str, str]], str]], share: float, seed: int):
    paths: dict[str, str] = {}
    assume(all(paths.setdefault(path, digit) == digit for files, _ in tasks for path, digit in files))
    pool = TaskPool(
        [
            task(
                str(number),
                dataset=dataset,
                files=tuple(DataFile(path=path, sha256=digit * 64) for path, digit in files),
            )
            for number, (files, dataset) in enumerate(tasks)
        ],
        data_root="/nowhere",
    )
    try:
        halves = pool.split(share, seed)
    except TaskError as error:
        assert "none can be held out" in str(error) and 0 < share < 1
        return
    assert sorted(task.id for half in halves for task in half) == sorted(task.id for task in pool)
    for keys in (
        lambda task: {file.path for file in task.files},
        lambda task: {file.sha256 for file in task.files},
        lambda task: {task.dataset} - {""},
    ):
        train, held_out = (set().union(*map(keys, half)) for half in halves)
        assert not train & held_out
    assert [list(half) for half in pool.split(share, seed)] == [list(half) for half in halves]


def test_a_split_meets_its_share_where_the_groups_allow():
    pool = TaskPool([task(str(number)) for number in range(100)])
    train, held_out = pool.split(0.2, seed=3)
    assert (len(train), len(held_out)) == (80, 20)
    assert [*map(len, pool.split(0, seed=3))] == [100, 0] and [*map(len, pool.split(1, seed=3))] == [0, 100]
    assert list(held_out) != list(pool.split(0.2, seed=4)[1])
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(TaskError, match="held_out"):
            pool.split(share, seed=3)


def test_the_hash_is_of_the_content(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert DataFile.of("x", tmp_path).sha256 == sha256_of(path) == hashlib.sha256(b"abc").hexdigest()
