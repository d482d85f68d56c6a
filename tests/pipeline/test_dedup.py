"""Duplicates: what is one, what is not, which is kept, and that datatrove reads our signature files."""

import random
from pathlib import Path

import numpy as np
import pytest
from runs import ids, notebook, outcomes, program, run_here

from benchmarks.dedup_quality import measure
from benchmarks.notebook_corpus import Corpus, real_notebooks, write_zips
from pipeline import ledger
from pipeline.explain import explain
from pipeline.matching import LineSets, MatchSettings, Weights, link, similarities
from pipeline.run_folder import RunFolder
from pipeline.skeleton import MIN_LINES, exact_key, line_hashes, skeleton_lines
from pipeline.stages.near import keep_best


def folder_of(tmp_path: Path, **notebooks: bytes) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in notebooks.items():
        (folder / f"{name}.ipynb").write_bytes(content)
    return folder


def test_exact_key_ignores_blanks_and_comment_lines_only() -> None:
    assert exact_key(["x = 1\n\n# note\ny=2"]) == exact_key(["x=1", "  # other\n y = 2"])
    assert exact_key(["x = 1"]) != exact_key(["x = 2"])
    assert exact_key(["# only a comment"]) == exact_key([]) == bytes(16)


def test_skeleton_lines_survive_renaming_and_keep_what_tells_apart() -> None:
    first = skeleton_lines(["frame = pd.read_csv('train.csv', nrows=100)\nframe['Age'].mean()"])
    assert first == skeleton_lines(["df=pd.read_csv('train.csv',nrows=5)\ndf['Age'].mean()"])
    assert first != skeleton_lines(["frame = pd.read_csv('test.csv', nrows=100)\nframe['Fare'].mean()"])
    assert skeleton_lines(["%matplotlib inline\n!pip install x\n# long comment line\nx = 1\n\n"]) == set()


def test_few_lines_are_left_to_the_exact_stage() -> None:
    assert len(line_hashes(program(1, MIN_LINES - 2))) == 0
    hashes = line_hashes(program(1))
    assert len(hashes) >= MIN_LINES
    assert (np.diff(hashes.astype(object)) > 0).all()


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"outputs": True}, {"outputs": False}),
        ({"votes": 9}, {"votes": 2}),
    ],
)
def test_the_best_is_kept(tmp_path: Path, better: dict[str, object], worse: dict[str, object]) -> None:
    from test_metakaggle import DUMP, write_dump

    versions = {101: better, 102: worse, 103: worse}
    votes = "".join(f"{v},{v},,8,t,{about.get('votes', 1)}\n" for v, about in versions.items())
    write_dump(tmp_path / "meta", KernelVersions=DUMP["KernelVersions"].split("\n")[0] + "\n" + votes)
    for order in ((103, 101, 102), (101, 102, 103)):
        out = tmp_path / str(order[0])
        out.mkdir()
        named = {
            f"0000/000/{v}": notebook(*program(1 if v != 103 else 1), outputs=bool(versions[v].get("outputs", True)))  # noqa: RUF034
            for v in order
        }
        folder = out / "in"
        for name, content in named.items():
            path = folder / f"{name}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content + b" " * int(name[-1]))
        run = run_here(out / "run", folder, metadata=str(tmp_path / "meta"))
        assert ids(run, "near") == ["0000/000/101.ipynb"]


def test_errors_count_against_a_copy(tmp_path: Path) -> None:
    broken = notebook(*program(1)).replace(b'{"output_type": "stream"', b'{"output_type": "error", "ename": "E"', 1)
    run = run_here(tmp_path / "run", folder_of(tmp_path, a=broken, b=notebook(*program(1))))
    assert ids(run, "near") == ["b.ipynb"]


def test_shared_boilerplate_is_no_likeness(tmp_path: Path) -> None:
    """Thirty notebooks with the same thirty lines at their head and twenty of their own stay apart."""
    head = "\n".join(f"config.set_option('shared.{n}', load_{n}('default_{n}'))" for n in range(30))
    notebooks = {f"n{seed:02d}": notebook(head, *program(seed, 20)) for seed in range(30)}
    run = run_here(tmp_path / "run", folder_of(tmp_path, **notebooks))
    assert run.tally("near").rejected == 0
    told = explain(run, "n00.ipynb", "n01.ipynb")
    assert told["verdict"].startswith("not duplicates")
    assert told["common_lines"] >= 30


def test_the_far_end_of_a_chain_is_kept() -> None:
    """Each set shares 80% with the next: linked all the way, but the last has nothing of the first."""
    lines = [set(range(n * 4, n * 4 + 20)) for n in range(12)]
    flat = np.concatenate([np.array(sorted(found), dtype=np.uint32) << np.uint32(10) for found in lines])
    sets = LineSets(flat, np.arange(0, 20 * 13, 20))
    weights, settings = Weights(sets), MatchSettings(threshold=0.5)
    assert similarities(sets, weights, np.array([0]), np.array([1]))[0] > 0.5
    assert similarities(sets, weights, np.array([0]), np.array([11]))[0] == 0
    kept, similar = keep_best(np.zeros(12, dtype=np.int64), np.arange(12), sets, weights, settings)
    assert kept[0] == 0 and kept[1] == 0 and kept[11] != 0
    assert (similar >= settings.keep_threshold).all()
    assert 1 < len(set(kept.tolist())) < 6


def test_similarity_is_the_weighted_jaccard_by_hand() -> None:
    rng = random.Random(0)
    contents = [sorted(rng.sample(range(300), rng.randint(1, 120))) for _ in range(40)]
    flat = np.concatenate([np.array(found, dtype=np.uint32) << np.uint32(10) for found in contents])
    sets = LineSets(flat, np.r_[0, np.cumsum([len(found) for found in contents])])
    counts = {line: sum(line in found for found in contents) for line in range(300)}
    weight = {line: 1 / (1 + np.log(max(count, 1))) for line, count in counts.items()}
    left, right = np.triu_indices(40, 1)
    found = similarities(sets, Weights(sets), left, right, batch=100)
    for a, b, value in zip(left, right, found, strict=True):
        one, two = set(contents[a]), set(contents[b])
        expected = sum(weight[x] for x in one & two) / sum(weight[x] for x in one | two)
        assert value == pytest.approx(expected)


def test_linking_is_what_a_plain_union_find_finds() -> None:
    rng = np.random.default_rng(1)
    rows, bands = 500, [rng.integers(0, 400, size=500).astype(np.uint64) for _ in range(3)]
    parent = list(range(rows))

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    found = link(rows, ((np.arange(rows), keys) for keys in bands), lambda a, b: (a % 2) == (b % 2))
    for keys in bands:
        for key in np.unique(keys):
            members = np.flatnonzero(keys == key).tolist()
            for before, member in zip(members, members[1:], strict=False):  # noqa: RUF007
                for other in (before, members[0]):
                    if other % 2 == member % 2:
                        parent[root(member)] = root(other)
    assert (
        len({(found[row], root(row)) for row in range(rows)})
        == len({root(row) for row in range(rows)})
        == found.max() + 1
    )


def test_datatroves_later_blocks_read_our_signatures(some_notebooks: Path, tmp_path: Path) -> None:
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster

    from pipeline.stages.signatures import minhash_config

    run = run_here(tmp_path / "run", some_notebooks)
    config = minhash_config(MatchSettings())
    for bucket in range(config.num_buckets):
        MinhashDedupBuckets(str(run.root / "signatures"), str(tmp_path / "dups"), config=config).run(
            None, bucket, config.num_buckets
        )
    MinhashDedupCluster(str(tmp_path / "dups"), str(tmp_path / "removed"), config).run(None, 0, 1)
    removed = sum(path.stat().st_size // 4 for path in (tmp_path / "removed").glob("*.remove"))
    assert removed == run.tally("near").rejected == 5


def test_quality_is_measured_right() -> None:
    truth = [(0, "base"), (0, "rename"), (0, "small"), (1, "base"), (2, "base")]
    found = measure(truth, found=[7, 7, 8, 9, 9], kept=[True, False, True, True, False])
    assert (found.precision, found.recall) == (0.5, 1 / 3)
    assert (found.duplicates_left, found.clusters_lost) == (0.5, 1 / 3)
    assert found.recall_by_kind == {"rename": 1.0, "small": 0.0}


def test_quality_on_a_small_corpus_of_real_cells(tmp_path: Path) -> None:
    from runs import shared

    truth = write_zips(Corpus(real_notebooks(shared("notebooks")), 600, 150, seed=3, outputs=False), tmp_path / "in")
    run = run_here(tmp_path / "run", tmp_path / "in")
    parent: dict[str, str] = {}
    for stage in ("exact", "near"):
        for name, item in outcomes(run, stage).items():
            if item.state == ledger.REJECTED:
                parent[name] = item.detail.split(" of ", 1)[1]
    version = {int(name.rsplit("/", 1)[1].split(".")[0]): name for name in outcomes(run, "exact")}

    def root(name: str) -> str:
        while name in parent:
            name = parent[name]
        return name

    names = [version[number] for number in range(len(truth))]
    quality = measure(truth, [root(name) for name in names], [name not in parent for name in names])  # type: ignore[misc, arg-type]
    assert quality.precision >= 0.999
    assert (
        quality.duplicates_left <= 0.02
    )  # nearly all bases are real here, and some have fewer lines than are compared
    assert quality.clusters_lost == 0


def test_a_stale_signature_is_written_again(some_notebooks: Path, tmp_path: Path) -> None:
    run = run_here(tmp_path / "run", some_notebooks)
    before = (run.root / "signatures" / "lines.u32").read_bytes()
    (run.root / "signatures" / "00000.mark").unlink()
    (run.root / "signatures" / "lines" / "00000.u32").write_bytes(b"")
    (run.root / "decisions" / "near" / "index.json").unlink()
    again = run_here(tmp_path / "run", some_notebooks)
    assert (again.root / "signatures" / "lines.u32").read_bytes() == before
    assert isinstance(again, RunFolder)
