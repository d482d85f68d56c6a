"""Stage 2: of notebooks with the same code, blanks and comments aside, the best is kept.

`ExactMatch` compares all rows in one process (32 bytes a row and the ids), `Exact` carries its decisions out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from datatrove.pipeline.base import PipelineStep

from pipeline import best, decisions
from pipeline.decisions import Decision
from pipeline.parts import read_table
from pipeline.run_folder import RunFolder, Unit
from pipeline.stage import Item, Rejected, Stage
from pipeline.stages.read import SCHEMA


def columns_of(folder: RunFolder, stage: str, units: list[Unit], columns: list[str]) -> tuple[pa.Table, np.ndarray]:
    """Some columns of a stage's rows in the order of the units, and where each unit begins."""
    tables, first_rows = [], [0]
    for unit in units:
        table = read_table(folder.parts(stage, unit.name), columns)
        if table is not None:
            tables.append(table)
        first_rows.append(first_rows[-1] + (table.num_rows if table is not None else 0))
    empty = pa.table({name: pa.array([], SCHEMA.field(name).type) for name in columns})
    return (pa.concat_tables(tables) if tables else empty), np.array(first_rows)


class ExactMatch(PipelineStep):  # type: ignore[misc]
    """Groups all rows by the hash of their code, then by kernel version; one task."""

    type = "notebooks"
    name = "exact-match"

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.run_folder = folder

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the decisions, unless they are there."""
        folder, units = self.run_folder, self.run_folder.units()
        out = folder.folder("decisions") / "exact"
        mark = decisions.basis(folder, "read", units, Exact.version)
        found = decisions.current(out)
        if found and found.basis == mark:
            return
        table, first_rows = columns_of(folder, "read", units, ["code_key", "kernel_version", *best.COLUMNS])
        merit = best.order_of_merit(table)
        rows = np.arange(table.num_rows)
        same_code = best.best_of_groups(_code_groups(table), merit)
        kept, same_version = _one_a_version(table, same_code, merit)
        going = kept != rows
        reasons = np.where(same_version[going], "same_kernel_version", "exact_duplicate").tolist()
        ids = columns_of(folder, "read", units, ["id"])[0]["id"]
        decisions.write(out, mark, units, first_rows, kept, reasons, np.ones(len(kept)), ids)
        self.stat_update("duplicates", value=int(going.sum()))


def _code_groups(table: pa.Table) -> np.ndarray:
    """A number for each distinct code; rows without code have one of their own."""
    pair = np.dtype([("a", "<u8"), ("b", "<u8")])
    parts = [
        np.frombuffer(c.buffers()[1], pair)[c.offset : c.offset + len(c)] for c in table["code_key"].chunks if len(c)
    ]
    keys = np.concatenate(parts) if parts else np.empty(0, pair)
    mixed = keys["a"] ^ (keys["b"] << np.uint64(1))  # 64 good bits: a chance of 3e-6 that any two of 10 million meet
    groups = np.unique(mixed, return_inverse=True)[1].astype(np.int64)
    empty = mixed == 0
    groups[empty] = len(keys) + np.flatnonzero(empty)
    return groups


def _one_a_version(table: pa.Table, kept: np.ndarray, merit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Among the rows still kept, one for each kernel version (two dumps may hold it); and which rows that concerns."""
    versions = table["kernel_version"].fill_null(-1).to_numpy().astype(np.int64)
    rows = np.arange(len(kept))
    stays = (kept == rows) & (versions >= 0)
    groups = np.where(stays, versions, -2 - rows)
    again = best.best_of_groups(groups, merit)
    return again[kept], stays & (again != rows)


class Decided(Stage):
    """A stage that carries out decisions made by comparing all rows."""

    _rows: pa.Table | None = None

    def decided(self) -> str:
        """The name of the folder of decisions."""
        return self.name

    def basis(self, unit: Unit) -> str:
        """The rows before and the unit's decisions."""
        found = decisions.current(self.run_folder.folder("decisions") / self.decided())
        return super().basis(unit) + (found.units.get(unit.name, "") if found else "")

    def items(self, unit: Unit) -> Iterator[Item]:
        """The rows' numbers with their decisions; the rows themselves stay in Arrow's memory."""
        decided = decisions.read(self.run_folder.folder("decisions") / self.decided(), unit)
        self._rows = read_table(self.run_folder.parts(self.upstream, unit.name), self.schema.names)
        if self._rows is not None:
            names = zip(self._rows["id"].to_pylist(), self._rows["key"].to_pylist(), strict=True)
            for number, (name, key) in enumerate(names):
                yield Item(name, key, (number, decided.get(number)))

    def decide(self, item: Item) -> int | Rejected:
        """As it was decided: the number of the row that goes on."""
        number, decision = item.payload
        if decision is None:
            return int(number)
        return Rejected(decision.reason, _why(decision))

    def table(self, rows: list[int]) -> pa.Table:
        """The rows with these numbers."""
        assert self._rows is not None
        return self._rows.take(rows)


def _why(decision: Decision) -> str:
    return f"{decision.similarity:.2f} of {decision.of}"


class Exact(Decided):
    """Rejects all but the best of the notebooks with the same code."""

    name = "exact"
    version = 1
    upstream = "read"
    schema = SCHEMA

    def config(self) -> Any:
        """Nothing beside the decisions."""
        return None
