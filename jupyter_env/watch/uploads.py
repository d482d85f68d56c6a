"""The files that a browser sends: within limits, under names of our making, in a folder that goes with the server."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xlsx", ".parquet", ".md")
_REFUSED_CHARS = re.compile(r"[^\w .()+-]")


class Refused(Exception):
    """An upload that is not taken; the message is for the user."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class UploadLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a browser may send, until the server ends."""

    max_file_bytes: int = 100_000_000
    max_files: int = 50
    max_total_bytes: int = 1_000_000_000


class Uploads:
    """Uploaded files by name, each in `folder`."""

    def __init__(self, folder: Path, limits: UploadLimits = UploadLimits()) -> None:  # noqa: B008
        self.folder = folder
        self._limits = limits
        self._sizes: dict[str, int] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._sizes

    async def take(self, given_name: str, chunks: AsyncIterator[bytes]) -> str:
        """Store a file and return the name it goes by; nothing is kept of one that is refused or breaks off.

        Raises:
            Refused: its kind, its size, or one file too many.
        """
        if len(self._sizes) >= self._limits.max_files:
            raise Refused(f"{self._limits.max_files} files are here already; start the server anew", 413)
        name = self._free_name(safe_name(given_name))
        self._sizes[name] = 0  # taken, so that two uploads at once do not share it
        path = self.folder / name
        try:
            file = path.open("xb")
        except BaseException:  # what is there is none of this upload's
            del self._sizes[name]
            raise
        try:
            with file:
                async for chunk in chunks:
                    self._sizes[name] += len(chunk)
                    self._check_size(name)
                    file.write(chunk)
            if not self._sizes[name]:
                raise Refused(f"{name} is empty")
        except BaseException:
            del self._sizes[name]
            path.unlink(missing_ok=True)
            raise
        return name

    def _check_size(self, name: str) -> None:
        if self._sizes[name] > self._limits.max_file_bytes:
            limit = f"{self._limits.max_file_bytes / 1e6:,.3g} MB"
            raise Refused(f"{name} is larger than {limit}, the most that one file may have (--max-upload-mb)", 413)
        if sum(self._sizes.values()) > self._limits.max_total_bytes:
            raise Refused(f"all files together are over {self._limits.max_total_bytes / 1e6:,.3g} MB", 413)

    def _free_name(self, name: str) -> str:
        """This name, numbered where it is taken; macOS and Windows take `Data.csv` and `data.csv` for one file."""
        taken = {name.casefold() for name in self._sizes}
        stem, suffix = Path(name).stem, Path(name).suffix
        names = [name, *(f"{stem}-{number}{suffix}" for number in range(2, self._limits.max_files + 2))]
        return next(free for free in names if free.casefold() not in taken)


def safe_name(given: str) -> str:
    """A plain file name made from what a browser calls a file: no folders, no leading dots, no control characters.

    Raises:
        Refused: it has no ending of `SUFFIXES`.
    """
    name = unicodedata.normalize("NFC", given).replace("\\", "/").rpartition("/")[2]
    name = _REFUSED_CHARS.sub("_", name).rstrip(" .")
    stem, dot, suffix = name.rpartition(".")
    if not dot or f".{suffix.lower()}" not in SUFFIXES:
        raise Refused(f"{name or 'the file'} is none of {', '.join(SUFFIXES)}", 415)
    return f"{stem.strip(' .')[:80] or 'table'}.{suffix.lower()}"
