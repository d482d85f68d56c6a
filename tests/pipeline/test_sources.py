"""Where notebooks come from, and what is wrong with some of them."""

import gzip
import json
import zipfile
import zlib
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import notebook, outcomes, program, run_here, write_zip

from pipeline import sources
from pipeline.run_folder import RunFolder
from pipeline.sources import NotebookReader, SourceError, find_units, kernel_version


def read_all(inputs: Path | str, tmp_path: Path, max_bytes: int = 10_000_000) -> dict[str, object]:
    reader = NotebookReader(RunFolder(tmp_path / "run"), max_bytes)
    found: dict[str, object] = {}
    for unit in find_units(str(inputs)):
        for document in reader.read(unit):
            assert document.id not in found
            found[document.id] = document.media[0].media_bytes if document.media else document.metadata["error"].reason
    return found


def test_kaggle_layout(tmp_path: Path) -> None:
    members = {
        f"{top:04d}/{mid:03d}/{top * 1_000_000 + mid * 1000 + 7}.ipynb": notebook(f"x = {top}")
        for top in (0, 14, 132)
        for mid in (0, 87)
    }
    write_zip(tmp_path / "in.zip", {**members, "0000/000/9.py": b"x = 1", "0000/000/10.Rmd": b"text"})
    units = find_units(str(tmp_path / "in.zip"))
    assert [(unit.name, unit.members, unit.items) for unit in units] == [
        ("in_zip-0000", "top:0000", 2), ("in_zip-0014", "top:0014", 2), ("in_zip-0132", "top:0132", 2),
    ]  # fmt: skip
    assert set(read_all(tmp_path / "in.zip", tmp_path)) == {f"in.zip!{name}" for name in members}
    assert kernel_version("0132/087/132087938.ipynb") == 132087938
    assert kernel_version("a/b.ipynb") is None


def test_a_zip_of_another_layout_and_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MEMBERS_A_UNIT", 10)
    write_zip(tmp_path / "in.zip", {f"deep/{n}.ipynb": notebook(f"x = {n}") for n in range(50)})
    units = find_units(str(tmp_path))
    assert len(units) == 8
    assert sum(unit.items for unit in units) == 50
    assert len(read_all(tmp_path, tmp_path)) == 50


def test_the_same_name_twice_in_a_zip_and_in_two_zips(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("0000/000/1.ipynb", notebook(*program(1)))
        archive.writestr("0000/000/1.ipynb", notebook(*program(2)))
    write_zip(folder / "b.zip", {"0000/000/1.ipynb": notebook(*program(1))})
    run = run_here(tmp_path / "run", folder)
    found = outcomes(run, "exact")
    assert set(found) == {"a.zip!0000/000/1.ipynb", "a.zip!0000/000/1.ipynb#2", "b.zip!0000/000/1.ipynb"}
    assert sorted(item.reason for item in found.values()) == ["", "exact_duplicate", "same_kernel_version"]


def test_hostile_and_damaged_members(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "in.zip",
        {
            "0000/000/1.ipynb": notebook("x = 1"),
            "0000/000/2.ipynb": b"\0" * 20_000_000,  # a bomb that says so
            "0000/000/3.ipynb": b"\0" * 15_000_000,  # a bomb that does not
            "0000/000/4.ipynb": notebook("y = 'this one gets a wrong checksum'"),
            "../../0000/000/5.ipynb": notebook("z = 'a name that climbs'"),
        },
    )
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    lying = raw.index(b"0000/000/3.ipynb", directory) - 46
    raw[lying + 24 : lying + 28] = (1000).to_bytes(4, "little")
    wrong = raw.index(b"0000/000/4.ipynb", directory) - 46
    raw[wrong + 16 : wrong + 20] = b"\1\2\3\4"
    path.write_bytes(raw)
    found = read_all(path, tmp_path)
    assert found["in.zip!0000/000/1.ipynb"] == notebook("x = 1")
    assert found["in.zip!0000/000/2.ipynb"] == "too_large"
    assert found["in.zip!0000/000/3.ipynb"] in ("too_large", "bad_zip_member")
    assert found["in.zip!0000/000/4.ipynb"] == "bad_zip_member"
    assert found["in.zip!../../0000/000/5.ipynb"] == notebook("z = 'a name that climbs'"), "a name is only a name"
    run = run_here(tmp_path / "run", path, until="read")
    assert run.tally("read").reasons == {"too_large": 1, "bad_zip_member": 2} or run.tally("read").rejected == 3
    assert not (tmp_path.parent / "0000").exists()


def test_json_lines_and_bad_rows(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = notebook("x = 1").decode()
    lines = [
        json.dumps({"text": good, "id": "0132/087/132087938.ipynb"}),
        json.dumps({"notebook": json.loads(good)}),
        "{not json",
        json.dumps([1]),
        json.dumps({"other": 1}),
        json.dumps({"content": "no notebook"}),
    ]
    (folder / "a.jsonl").write_text("\n".join(lines))
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write(lines[0])
    run = run_here(tmp_path / "run", folder, until="read")
    reasons = {name: item.reason for name, item in outcomes(run, "read").items()}
    assert reasons == {
        "a.jsonl!0": "", "a.jsonl!1": "", "a.jsonl!2": "bad_row", "a.jsonl!3": "bad_row",
        "a.jsonl!4": "no_notebook_column", "a.jsonl!5": "invalid_json", "b.jsonl.gz!0": "",
    }  # fmt: skip


def test_parquet_and_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"content": [notebook(f"x = {n}").decode() for n in range(3)], "id": ["a", "b", "c"]})
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(table, folder / "part.parquet")
    assert set(read_all(folder, tmp_path)) == {f"part.parquet!{n}" for n in range(3)}

    from fsspec.implementations.local import LocalFileSystem

    class Hub(LocalFileSystem):  # type: ignore[misc]
        """The hub's file system with its files on this disk."""

        protocol = "hf"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(str(path).removeprefix("hf://").replace("datasets/me/set", str(folder)))

    monkeypatch.setitem(fsspec.registry.target, "hf", Hub) if hasattr(
        fsspec.registry, "target"
    ) else fsspec.register_implementation("hf", Hub, clobber=True)
    units = find_units("hf://datasets/me/set")
    assert [unit.kind for unit in units] == ["parquet"]
    assert len(read_all("hf://datasets/me/set", tmp_path)) == 3


def test_a_limit_counts_over_all_units(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        write_zip(folder / f"{name}.zip", {f"0000/000/{n}.ipynb": notebook(f"x = '{name}{n}'") for n in range(5)})
    assert run_here(tmp_path / "run", folder, until="read", limit=7).tally("read").items == 7


@pytest.mark.parametrize("make", ["missing", "empty", "bad_zip"])
def test_no_input(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "in"
    if make != "missing":
        folder.mkdir()
    if make == "bad_zip":
        (folder / "a.zip").write_bytes(b"PK but no zip")
    with pytest.raises(
        SourceError, match={"missing": "does not exist", "empty": "no notebooks", "bad_zip": "a.zip"}[make]
    ):
        find_units(str(folder))


def test_isal_inflates_what_zlib_packed(tmp_path: Path) -> None:
    for level in (zlib.Z_NO_COMPRESSION, 1, 9):
        path = tmp_path / f"{level}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
            archive.writestr("0000/000/1.ipynb", notebook(*program(3, 400)))
        assert list(read_all(path, tmp_path).values()) == [notebook(*program(3, 400))]
