"""The one truth of a run: what became of each item, stage by stage.

A stage works through units (a zip's folder, a group of files, a Parquet file), and each unit of each stage has one
ledger, a file of JSON lines that only grows:

    {"header": ...}      the stage, its version and what the unit is worked out from (its basis)
    {"commit": ...}      one batch: the outcomes of its items and the part file with the rows of those that are done
    {"end": ...}         the whole input was seen; done + rejected + failed was checked against its count

A part is written aside, synced and renamed before its commit is appended and synced, so a part counts if and only if
a commit names it: a process killed at any moment leaves a part without a commit or half a line, and both are removed
when the unit is opened again. Nothing in a ledger depends on the time or the machine, so equal work gives equal bytes,
and the digest of a ledger stands for the unit's whole output: it is the basis of the next stage's unit.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec
import xxhash

MAX_TRIES = 3
"""An item that failed is tried again by later runs until it has failed this often."""

DONE, REJECTED, FAILED = "done", "rejected", "failed"


class LedgerError(RuntimeError):
    """A ledger that can't be what this program wrote, or is in use by another process."""


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of one item."""

    id: str
    key: str
    """Its content's hash, hexadecimal: an item with the same id and another content is another item."""
    state: str
    """`done`, `rejected` or `failed`."""
    reason: str = ""
    """Of a rejection a fixed word, to be counted; of a failure the error."""
    detail: str = ""
    tries: int = 1


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a unit's outcomes rest on; another version, configuration or basis makes them void."""

    stage: str
    unit: str
    version: int
    config: str
    """Digest of the settings, those of the stages before included."""
    basis: str
    """Digest of the input."""

    @property
    def generation(self) -> str:
        """8 digits for file names, so that the parts of two generations never meet."""
        return xxhash.xxh3_64_hexdigest(msgspec.json.encode(self))[:8]


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """One batch."""

    part: str | None
    """The part file's name; none where no item of the batch is done."""
    rows: int
    sha256: str
    """Of the part file."""
    counts: dict[str, int]
    """Change of the number of items by state: a failed item that is done at last takes one from the failed."""
    reasons: dict[str, int]
    items: list[Outcome]


class End(msgspec.Struct, frozen=True):
    """The unit's input was seen to its end."""

    items: int


class Line(msgspec.Struct, omit_defaults=True):
    """A line of a ledger: one of the three."""

    header: Header | None = None
    commit: Commit | None = None
    end: End | None = None


class _Counts(msgspec.Struct):
    counts: dict[str, int]
    reasons: dict[str, int]
    rows: int
    part: str | None


class _CountLine(msgspec.Struct):
    """A line without its items, which are by far the most of it."""

    commit: _Counts | None = None
    end: End | None = None
    header: Header | None = None


class Tally(msgspec.Struct):
    """The counts of a unit, or of many."""

    done: int = 0
    rejected: int = 0
    failed: int = 0
    reasons: Counter[str] = msgspec.field(default_factory=Counter)
    ended: int = 0
    """How many units came to their end."""

    @property
    def items(self) -> int:
        """All that have an outcome."""
        return self.done + self.rejected + self.failed

    def add(self, other: Tally) -> None:
        """Count another unit in."""
        self.done += other.done
        self.rejected += other.rejected
        self.failed += other.failed
        self.reasons.update(other.reasons)
        self.ended += other.ended


class UnitLedger:
    """The ledger of one unit of one stage, open for appending by one process.

    Args:
        path: `ledger/STAGE/UNIT.jsonl`.
        parts: the folder of the stage's part files.
        header: what the outcomes rest on now. Where the file was written for another header, it is set aside as
            `UNIT.jsonl.old`, so that outcomes which still hold can be taken over from it.

    Raises:
        LedgerError: another process has it open, or a line in its middle is damaged.
    """

    def __init__(self, path: Path, parts: Path, header: Header) -> None:
        self.path, self.parts, self.header = path, parts, header
        path.parent.mkdir(parents=True, exist_ok=True)
        parts.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path.with_suffix(".lock"))
        try:
            lines, size = read_lines(path)
            if lines and lines[0].header != header:
                path.replace(self.old_path)
                lines, size = [], 0
            self.commits = [line.commit for line in lines if line.commit]
            self.ended = bool(lines) and lines[-1].end is not None
            self._file: IO[bytes] = path.open("ab")
            self._file.truncate(size)
            if not lines:
                self._append(Line(header=header))
        except BaseException:
            self._lock.close()
            raise
        self.outcomes = {(item.id, item.key): item for commit in self.commits for item in commit.items}
        self._remove_strays()

    @property
    def old_path(self) -> Path:
        """Where the ledger of another header lies while this one is being filled."""
        return self.path.with_suffix(".jsonl.old")

    def old_commits(self) -> tuple[Header | None, list[Commit]]:
        """What the ledger of the former header holds, if there is one."""
        lines, _ = read_lines(self.old_path)
        return (lines[0].header if lines else None), [line.commit for line in lines if line.commit]

    def part_name(self) -> str:
        """The name of the next part file."""
        return f"{self.header.unit}.{self.header.generation}.{len(self.commits):05d}.parquet"

    def commit(self, outcomes: list[Outcome], part: str | None, rows: int, sha256: str) -> None:
        """Append one batch; when this returns, it is on the disk."""
        counts, reasons = Counter[str](), Counter[str]()
        for item in outcomes:
            before = self.outcomes.get((item.id, item.key))
            for outcome, by in ((before, -1), (item, 1)):
                if outcome is not None:
                    counts[outcome.state] += by
                    if outcome.state != DONE:
                        reasons[_reason(outcome)] += by
            self.outcomes[item.id, item.key] = item
        commit = Commit(part=part, rows=rows, sha256=sha256, counts=counts, reasons=reasons, items=outcomes)
        self._append(Line(commit=commit))
        self.commits.append(commit)

    def end(self, items: int) -> None:
        """Close the account.

        Raises:
            LedgerError: the outcomes are not as many as the items that came in.
        """
        states = Counter(item.state for item in self.outcomes.values())
        if states.total() != items:
            raise LedgerError(
                f"{self.path}: {items:,} items came in, but {states.total():,} have an outcome ({dict(states)}). "
                "Two items have the same id and content, or the input changed while it was read"
            )
        self._append(Line(end=End(items)))
        self.ended = True
        self.old_path.unlink(missing_ok=True)
        self._remove_strays()

    def _append(self, line: Line) -> None:
        self._file.write(_encoder.encode(line) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _remove_strays(self) -> None:
        """Remove the unit's part files that no ledger names."""
        named = {commit.part for commit in (*self.commits, *self.old_commits()[1])}
        for part in self.parts.glob(f"{glob_safe(self.header.unit)}.????????.?????.parquet*"):
            if part.name not in named:
                part.unlink()

    def close(self) -> None:
        """Let other processes have it."""
        self._file.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_lines(path: Path) -> tuple[list[Line], int]:
    """The whole lines of a ledger and how many bytes they take; what a kill left after them is not counted.

    Raises:
        LedgerError: a line before the last is damaged.
    """
    lines: list[Line] = []
    size = 0
    for number, raw in enumerate(_raw_lines(path), start=1):
        try:
            lines.append(_decoder.decode(raw))
        except msgspec.DecodeError as error:
            raise LedgerError(
                f"{path}, line {number}: {error}. The file was damaged by something other than a crash; "
                "remove it to have its unit done again"
            ) from None
        size += len(raw) + 1
    return lines, size


def tally(path: Path) -> Tally:
    """The counts of a unit, read while it may be growing."""
    total = Tally()
    for raw in _raw_lines(path):
        line = _count_decoder.decode(raw)
        if line.commit:
            total.done += line.commit.counts.get(DONE, 0)
            total.rejected += line.commit.counts.get(REJECTED, 0)
            total.failed += line.commit.counts.get(FAILED, 0)
            total.reasons.update(line.commit.reasons)
        total.ended = int(line.end is not None)
    return total


def committed_parts(path: Path) -> list[str]:
    """The names of a unit's part files, in order."""
    found = [line.commit.part for line in map(_count_decoder.decode, _raw_lines(path)) if line.commit]
    return [part for part in found if part is not None]


def digest(path: Path) -> str | None:
    """The digest of a ended unit's ledger; none where it has not ended."""
    last, hasher = b"", xxhash.xxh3_128()
    for last in _raw_lines(path):
        hasher.update(last)
    return hasher.hexdigest() if last and _count_decoder.decode(last).end is not None else None


def _raw_lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for raw in file:
            if raw.endswith(b"\n"):
                yield raw[:-1]


def _reason(outcome: Outcome) -> str:
    return outcome.reason if outcome.state == REJECTED else "failed: " + outcome.reason.split(":")[0]


def _locked(path: Path) -> IO[bytes]:
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise LedgerError(f"{path}: another process works on this unit; wait for it or end it") from None
    return file


def glob_safe(name: str) -> str:
    """A name with nothing in it that a glob reads as a pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)
_count_decoder = msgspec.json.Decoder(_CountLine)
