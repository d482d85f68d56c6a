"""Data sets on disk, and which of their files a path in a notebook means.

A data set is a folder `OWNER+NAME` or `OWNER+NAME@VERSION` (a competition `competitions+NAME`). Names and paths come
from data and are hostile: nothing outside the folder is ever opened, and links are not followed.
"""

from __future__ import annotations

import fnmatch
import hashlib
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pipeline.parts import write_aside
from pipeline.reads import UNKNOWN


class Ref(msgspec.Struct, frozen=True):
    """A data set that a notebook names or was run with."""

    name: str
    """`OWNER/NAME`."""
    version: int | None = None
    base: str = ""
    """Where in the data set the notebook lies, if it lies in it: relative paths begin there."""


class Found(msgspec.Struct, frozen=True):
    """A file that a notebook reads, found."""

    read: str
    """As the code has it."""
    dataset: str
    """The folder's name."""
    file: str
    """In the data set."""
    bytes: int
    sha256: str


class Catalog:
    """The data sets of a folder.

    Args:
        folder: with one folder for each data set.
        hashes: where the sha256 of files are kept, so that each is worked out once.
    """

    def __init__(self, folder: Path, hashes: Path) -> None:
        self.folder, self.hashes = folder, hashes
        self._files: dict[str, dict[str, int]] = {}
        self._names: dict[str, list[str]] | None = None

    def names(self) -> dict[str, list[str]]:
        """Folders by `OWNER/NAME`, the newest version last."""
        if self._names is None:
            found: dict[str, list[tuple[int, str]]] = {}
            for path in self.folder.iterdir() if self.folder.is_dir() else ():
                match = re.fullmatch(r"([^@]+?)\+([^@]+?)(?:@(\d+))?", path.name)
                if match and path.is_dir() and not path.is_symlink():
                    found.setdefault(f"{match[1]}/{match[2]}", []).append((int(match[3] or 0), path.name))
            self._names = {name: [folder for _, folder in sorted(versions)] for name, versions in found.items()}
        return self._names

    def folder_of(self, ref: Ref) -> str | None:
        """The folder of a data set; with a version that one or an unversioned one, never another."""
        folders = self.names().get(ref.name, [])
        if ref.version is None:
            return folders[-1] if folders else None
        wanted = [folder for folder in folders if folder.endswith(f"@{ref.version}")]
        return next(iter(wanted or [folder for folder in folders if "@" not in folder]), None)

    def files(self, name: str) -> dict[str, int]:
        """Sizes by path of a data set's files, links left out."""
        if name not in self._files:
            root = self.folder / name
            paths = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
            self._files[name] = {path.relative_to(root).as_posix(): path.stat().st_size for path in sorted(paths)}
        return self._files[name]

    def sha256(self, name: str, file: str) -> str:
        """Of a file's content, worked out once."""
        path = self.folder / name / file
        state = path.stat()
        key = hashlib.sha256(f"{path}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()
        known = self.hashes / key
        if known.exists():
            return known.read_text()
        with path.open("rb") as content:
            value = hashlib.file_digest(content, "sha256").hexdigest()
        self.hashes.mkdir(parents=True, exist_ok=True)
        write_aside(known, value.encode())
        return value

    def find(self, path: str, refs: Sequence[Ref]) -> list[Found]:
        """The files that a path in a notebook's code means; none where it can't be told, several for a pattern."""
        folders = [(ref, folder) for ref in refs if (folder := self.folder_of(ref)) is not None]
        for dataset, file in _resolve(path, [(ref, folder, self.files(folder)) for ref, folder in folders]):
            return [
                Found(path, dataset, name, self.files(dataset)[name], self.sha256(dataset, name))
                for name in ([file] if "*" not in file else fnmatch.filter(self.files(dataset), file))
            ]
        return []


_KAGGLE_INPUT = re.compile(r"^(?:.*?/)?(?:\.\./)*input/(.+)$")


def input_path(path: str) -> str | None:
    """What follows Kaggle's input folder in `../input/...`, `/kaggle/input/...` and the like."""
    match = _KAGGLE_INPUT.match(posixpath.normpath(path.replace("\\", "/")))
    return match[1] if match else None


def _resolve(path: str, datasets: list[tuple[Ref, str, dict[str, int]]]) -> list[tuple[str, str]]:
    """(folder, file) pairs, the best first: the place the path names, then the file with the longest common ending."""
    clean = posixpath.normpath(path.replace("\\", "/").removeprefix("file://"))
    within = input_path(path)
    if within is not None:
        slug, _, rest = within.partition("/")
        named = [
            (folder, rest) for ref, folder, files in datasets if ref.name.split("/")[-1] == slug and _has(files, rest)
        ]
        if named:
            return named
    for ref, folder, files in datasets:
        joined = posixpath.normpath(posixpath.join(ref.base, clean))
        if _has(files, joined):
            return [(folder, joined)]
    parts = [part for part in (within or clean).split("/") if part not in ("", ".", "..")]
    for first in range(len(parts)):
        if UNKNOWN in "/".join(parts[first:]):
            continue
        ending = "/".join(parts[first:])
        hits = [(folder, name) for _, folder, files in datasets for name in files if f"/{name}".endswith(f"/{ending}")]
        if hits:  # several with this ending: it can't be told which is meant, and a shorter ending tells less
            return hits if len(hits) == 1 else []
    return []


def _has(files: dict[str, int], name: str) -> bool:
    return name in files or ("*" in name and bool(fnmatch.filter(files, name)))
