"""Which file a path in a notebook means."""

import hashlib
import os
from pathlib import Path

import pytest

from pipeline.catalog import Catalog, Ref, input_path


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    files = {
        "ann+wines@5/data.csv": "v5",
        "ann+wines@6/data.csv": "v6",
        "ann+wines@6/deep/red.csv": "red",
        "competitions+titanic/train.csv": "t",
        "me+repo/data/train.csv": "r",
        "me+repo/data/2019/x.csv": "19",
        "me+repo/data/2020/x.csv": "20",
        "me+repo/results/a_val.csv": "a",
        "me+repo/results/b_val.csv": "b",
        "not a data set/x.csv": "",
    }
    for name, content in files.items():
        path = tmp_path / "sets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    os.symlink("/etc/passwd", tmp_path / "sets" / "me+repo" / "passwd.csv")  # noqa: PTH211
    os.symlink("/etc", tmp_path / "sets" / "evil+link")  # noqa: PTH211
    return Catalog(tmp_path / "sets", tmp_path / "hashes")


WINES, TITANIC, REPO = Ref("ann/wines", 5), Ref("competitions/titanic"), Ref("me/repo", base="notebooks/eda")


@pytest.mark.parametrize(
    ("path", "refs", "found"),
    [
        ("/kaggle/input/wines/data.csv", [WINES, TITANIC], ["ann+wines@5/data.csv"]),
        ("../input/wines/data.csv", [Ref("ann/wines")], ["ann+wines@6/data.csv"]),
        ("../input/train.csv", [WINES, TITANIC], ["competitions+titanic/train.csv"]),
        ("../input/titanic/train.csv", [REPO, TITANIC], ["competitions+titanic/train.csv"]),
        ("/kaggle/working/../input/wines/data.csv", [WINES], ["ann+wines@5/data.csv"]),
        ("../../data/train.csv", [REPO], ["me+repo/data/train.csv"]),
        ("..\\..\\data\\train.csv", [REPO], ["me+repo/data/train.csv"]),
        (r"C:\Users\me\data\train.csv", [REPO], ["me+repo/data/train.csv"]),
        ("/home/me/anything/2019/x.csv", [REPO], ["me+repo/data/2019/x.csv"]),
        ("x.csv", [REPO], []),
        ("../../results/*_val.csv", [REPO], ["me+repo/results/a_val.csv", "me+repo/results/b_val.csv"]),
        ("?/data/train.csv", [REPO], ["me+repo/data/train.csv"]),
        ("?", [REPO], []),
        ("/kaggle/input/wines/deep/red.csv", [WINES], []),
        ("/kaggle/input/wines/data.csv", [Ref("ann/wines", 4)], []),
        ("passwd.csv", [REPO], []),
        ("../../../../../etc/passwd", [REPO, WINES], []),
        ("/etc/passwd", [REPO, Ref("evil/link")], []),
        ("", [REPO], []),
        (".", [REPO], []),
    ],
)
def test_find(catalog: Catalog, path: str, refs: list[Ref], found: list[str]) -> None:
    assert [f"{file.dataset}/{file.file}" for file in catalog.find(path, refs)] == found


def test_a_found_file_carries_its_hash_and_the_hash_is_kept(catalog: Catalog) -> None:
    (file,) = catalog.find("../input/wines/data.csv", [WINES])
    assert (file.bytes, file.sha256) == (2, hashlib.sha256(b"v5").hexdigest())
    (kept,) = catalog.hashes.iterdir()
    kept.write_text("remembered")
    assert catalog.find("../input/wines/data.csv", [WINES])[0].sha256 == "remembered"


@pytest.mark.parametrize(
    ("path", "within"),
    [
        ("../input/a/b.csv", "a/b.csv"),
        ("/kaggle/input/a/b.csv", "a/b.csv"),
        ("../../kaggle/input/b.csv", "b.csv"),
        ("data/b.csv", None),
    ],
)
def test_input_path(path: str, within: str | None) -> None:
    assert input_path(path) == within
