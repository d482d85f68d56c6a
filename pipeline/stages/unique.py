"""Stage 9: of questions that mean the same, one is kept: the hardest, with its data here."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from datatrove.pipeline.base import PipelineStep

from jupyter_env.task import Task
from pipeline import decisions
from pipeline.drafts import LEVELS
from pipeline.meaning import Question, duplicates, similarity
from pipeline.parts import read_table
from pipeline.run_folder import RunFolder
from pipeline.stages.check import SCHEMA
from pipeline.stages.exact import Decided


class UniqueMatch(PipelineStep):  # type: ignore[misc]
    """Compares all questions that have the same answer; one task."""

    type = "notebooks"
    name = "unique-match"

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.run_folder = folder

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the decisions, unless they are there."""
        folder, units = self.run_folder, self.run_folder.units()
        out = folder.folder("decisions") / "unique"
        mark = decisions.basis(folder, "check", units, Unique.version)
        found = decisions.current(out)
        if found and found.basis == mark:
            return
        rows: list[dict[str, Any]] = []
        first_rows = [0]
        for unit in units:
            table = read_table(
                folder.parts("check", unit.name), ["id", "level", "has_data", "hashes", "datasets", "task"]
            )
            rows += table.to_pylist() if table is not None else []
            first_rows.append(len(rows))
        questions = [_question(row) for row in rows]
        kept = _kept(rows, list(duplicates(questions)))
        going = np.flatnonzero(kept != np.arange(len(rows)))
        alike = np.array([similarity(questions[row], questions[kept[row]]) for row in range(len(rows))])
        ids = pa.chunked_array([pa.array([row["id"] for row in rows], pa.string())])
        reasons = ["same_question"] * len(going)
        decisions.write(out, mark, units, np.array(first_rows), kept, reasons, alike, ids)
        self.stat_update("duplicates", value=len(going))


def _question(row: dict[str, Any]) -> Question:
    task = msgspec.json.decode(row["task"], type=Task)
    return Question(task.question, task.answer, frozenset(row["hashes"] or row["datasets"] or ()))


def _kept(rows: list[dict[str, Any]], pairs: list[tuple[int, int]]) -> np.ndarray:
    """For each question the number of the one that stays in its place."""
    parent = list(range(len(rows)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for one, other in pairs:
        parent[root(one)] = root(other)
    best: dict[int, int] = {}
    for number, row in enumerate(rows):
        held = best.get(root(number))
        if held is None or _merit(row) > _merit(rows[held]):
            best[root(number)] = number
    return np.array([best[root(number)] for number in range(len(rows))], dtype=np.int64)


def _merit(row: dict[str, Any]) -> tuple[bool, int]:
    return row["has_data"], LEVELS.index(row["level"])


class Unique(Decided):
    """Rejects all but one of the questions that mean the same."""

    name = "unique"
    version = 1
    upstream = "check"
    schema = SCHEMA

    def config(self) -> Any:
        """Nothing beside the decisions."""
        return None
