"""What every stage shares: take each item of a unit once, decide, commit by batches, prove that none was lost."""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import xxhash
from datatrove.pipeline.base import PipelineStep

from pipeline import ledger
from pipeline.ledger import DONE, FAILED, MAX_TRIES, REJECTED, Header, LedgerError, Outcome, UnitLedger
from pipeline.parts import read_rows, write_table
from pipeline.run_folder import RunFolder, Unit

Row = dict[str, Any]

_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EFBIG}
"""Errors that are the machine's and no item's: they stop the task, and nothing is written down against an item."""


class Rejected(msgspec.Struct, frozen=True):
    """The verdict on an item that goes no further."""

    reason: str
    """One of a few fixed words, to be counted."""
    detail: str = ""


class Item(msgspec.Struct, frozen=True):
    """What a stage decides on."""

    id: str
    key: str
    """Hash of the content, hexadecimal."""
    payload: Any


Result = tuple[Outcome, Row | None]
"""What became of an item, and its row where it goes on."""

Work = tuple[Item, Outcome | None, Result | None]
"""An item, what became of it before (it failed), and what became of it in a former generation that still holds."""


class Stage(PipelineStep):  # type: ignore[misc]
    """A stage of the pipeline: subclasses say what comes in (`items`) and decide on one item (`decide`).

    A task takes every `world_size`-th unit. An exception in `decide` is written down as a failure of that item, with
    its error, and the next item is taken; later runs try it again. Errors of the machine (a full disk) end the task.
    """

    type = "notebooks"
    name: str
    version: int
    """Raised when a change makes the stage decide or write otherwise; older outcomes are then void."""
    upstream: str = ""
    """The stage whose rows are the items."""
    expands: str = ""
    """Where a row of the stage before is several items: its column that says how many."""
    schema: pa.Schema
    """Of the rows that leave the stage."""
    batch_items = 2000
    """Items a commit: what a kill can cost. A commit is two syncs, some milliseconds."""
    takes_over = False
    """Whether outcomes survive a change of the input around an item: true where `decide` looks at the item alone."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.run_folder = folder

    @abstractmethod
    def decide(self, item: Item) -> Any:
        """The row that goes on (a dict, or what `table` takes), or a `Rejected` that says why none does."""

    def config(self) -> Any:
        """What the decisions depend on beside the items; plain data."""
        return None

    def units(self) -> list[Unit]:
        """What there is to do."""
        return self.run_folder.units()

    def basis(self, unit: Unit) -> str:
        """The digest of the unit's input.

        Raises:
            LedgerError: the stage before has not come to its end here.
        """
        found = ledger.digest(self.run_folder.ledger(self.upstream, unit.name))
        if found is None:
            raise LedgerError(
                f"stage {self.name} can't begin: stage {self.upstream} has not finished unit {unit.name}; "
                "run it again (`python -m pipeline run` resumes)"
            )
        return found

    def items(self, unit: Unit) -> Iterator[Item]:
        """The rows of the stage before."""
        for row in read_rows(self.run_folder.parts(self.upstream, unit.name)):
            yield Item(row["id"], row["key"], row)

    def table(self, rows: list[Any]) -> pa.Table:
        """What `decide` gave, as a table."""
        return pa.Table.from_pylist(rows, schema=self.schema)

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Work through the units of one rank; datatrove's executors call this."""
        for unit in self.units()[rank::world_size]:
            with self.track_time("unit"):
                self.run_unit(unit)

    def header(self, unit: Unit) -> Header:
        """What the unit's outcomes rest on now."""
        lines, _ = ledger.read_lines(self.run_folder.ledger(self.upstream, unit.name)) if self.upstream else ([], 0)
        before = lines[0].header if lines else None
        # What the stages before depend on is in their rows, and so in ours: settings are chained.
        settings = [self.config(), (before.version, before.config) if before else None]
        config = xxhash.xxh3_128_hexdigest(msgspec.json.encode(settings, order="deterministic"))
        return Header(stage=self.name, unit=unit.name, version=self.version, config=config, basis=self.basis(unit))

    def run_unit(self, unit: Unit) -> None:
        """Bring one unit to its end, whatever was done of it before."""
        folder = self.run_folder
        with UnitLedger(folder.ledger(self.name, unit.name), folder.parts_folder(self.name), self.header(unit)) as book:
            if book.ended and not any(_again(outcome) for outcome in book.outcomes.values()):
                return
            former = self._former(book) if self.takes_over else {}
            came = 0

            def work() -> Iterator[Work]:
                nonlocal came
                for item in self.items(unit):
                    came += 1
                    known = book.outcomes.get((item.id, item.key))
                    if known is None or _again(known):
                        yield item, known, former.get((item.id, item.key))

            batch: list[Result] = []
            for result in self.outcomes(work()):
                batch.append(result)
                if len(batch) >= self.batch_items:
                    self._commit(book, batch)
                    batch = []
            if batch:
                self._commit(book, batch)
            book.end(came)

    def given(self) -> int:
        """How many items the stage before hands to this one."""
        return self.run_folder.tally(self.upstream).done

    def outcomes(self, work: Iterator[Work]) -> Iterator[Result]:
        """What becomes of the items, in their order."""
        for item, known, held in work:
            yield held or self._outcome(item, known)

    def _outcome(self, item: Item, known: Outcome | None) -> Result:
        tries = known.tries + 1 if known else 1
        try:
            verdict = self.decide(item)
        except Exception as error:
            if is_machine_error(error):
                raise
            reason = f"{type(error).__name__}: {error}"[:500]
            return Outcome(item.id, item.key, FAILED, reason, tries=tries), None
        if isinstance(verdict, Rejected):
            return Outcome(item.id, item.key, REJECTED, verdict.reason, verdict.detail[:500], tries), None
        return Outcome(item.id, item.key, DONE, tries=tries), verdict

    def _commit(self, book: UnitLedger, batch: list[Result]) -> None:
        rows = [row for _, row in batch if row is not None]
        part, sha256 = None, ""
        if rows:
            part = book.part_name()
            sha256 = write_table(book.parts / part, self.table(rows))
        outcomes = [outcome for outcome, _ in batch]
        book.commit(outcomes, part, len(rows), sha256)
        self.stat_update("items", value=len(batch))
        self.stat_update("done", value=len(rows))

    def _former(self, book: UnitLedger) -> dict[tuple[str, str], Result]:
        """Outcomes of the former generation that still hold, with their rows."""
        header, commits = book.old_commits()
        if header is None or (header.version, header.config) != (book.header.version, book.header.config):
            return {}
        rows = {
            (row["id"], row["key"]): row
            for row in read_rows(book.parts / commit.part for commit in commits if commit.part is not None)
        }
        outcomes = {(item.id, item.key): item for commit in commits for item in commit.items}
        return {
            name: (item, rows[name] if item.state == DONE else None)
            for name, item in outcomes.items()
            if item.state != FAILED
        }


def is_machine_error(error: Exception) -> bool:
    """Whether an exception is no item's fault: a full disk, no memory."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _MACHINE_ERRORS)


def _again(outcome: Outcome) -> bool:
    return outcome.state == FAILED and outcome.tries < MAX_TRIES
