"""DABstep: 450 questions over payment data, whose answers its leaderboard keeps, and 10 with answers ("dev").

The files are those of the hub data set adyen/DABstep (CC-BY-4.0). Published figures are those of its own scorer,
`jupyter_env.dabstep_compat`; the strict verdict stands beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from jupyter_env.answer import Answer, Boolean, Hidden, Labelled, ListOf, NotApplicable, Number, Text
from jupyter_env.task import DataFile, Level, Task, TaskDataError, TaskError, TaskPool, sha256_of
from jupyter_env.tasksets.download import from_hub, read_rows

HUB = "adyen/DABstep"
PAYMENTS_SHA256 = "5fbb26210a45427d7a6560cfab3a362a08e4067f27cd03695f211a51c47ffc25"
CONTEXT = (
    "acquirer_countries.csv",
    "fees.json",
    "manual.md",
    "merchant_category_codes.csv",
    "merchant_data.json",
    "payments-readme.md",
    "payments.csv",
)
"""The files that every task comes with."""


def load(
    folder: str | Path | None = None, split: Literal["all", "dev"] = "all", context: Iterable[str] = CONTEXT
) -> TaskPool:
    """The tasks of a split.

    Args:
        folder: holds `tasks/<split>.jsonl` and `context/`, itself or in a folder `data`; None downloads it.
        split: "all" has 450 tasks without answers (`answer.Hidden`), "dev" 10 with answers.
        context: the files that the tasks get; fewer than all only for tasks that do without.

    Raises:
        TaskError: a file is missing, or a row is broken.
        TaskDataError: `payments.csv` is not the published one.
    """
    root = Path(folder) if folder is not None else from_hub(HUB, "data/*")
    root = root / "data" if (root / "data").is_dir() else root
    names = tuple(context)
    for path in (root / "tasks" / f"{split}.jsonl", *(root / "context" / name for name in names)):
        if not path.is_file():
            raise TaskError(f"{path} is missing; expected the files of the hub data set {HUB}")
    payments = root / "context" / "payments.csv"
    if "payments.csv" in names and (found := sha256_of(payments)) != PAYMENTS_SHA256:
        raise TaskDataError(f"{payments} has sha256 {found}, expected {PAYMENTS_SHA256}: changed or cut short")
    files = tuple(DataFile.of(name, root / "context") for name in names)
    return TaskPool((_task(row, files) for row in read_rows(root / "tasks" / f"{split}.jsonl")), root / "context")


def _task(row: dict[str, Any], files: tuple[DataFile, ...]) -> Task:
    answer = row.get("answer") or ""
    level: Level = row["level"]
    return Task(
        id=f"dabstep-{row['task_id']}",
        question=row["question"],
        guidelines=row["guidelines"],
        answer=typed(answer, row["guidelines"]),
        files=files,
        level=level,
        dataset="dabstep",
        source="DABstep",
        licence="CC-BY-4.0",
        metadata={"benchmark": "dabstep", "task_id": row["task_id"], "reference": answer},
    )


def typed(answer: str, guidelines: str) -> Answer:
    """The published answer as the strict type that the guidelines describe.

    More than 6 decimals are asked for to forbid rounding, not because they are right: a relative 1e-6 is taken.
    """
    if not answer:
        return Hidden()
    if answer == "Not Applicable":
        return NotApplicable()
    asked = re.search(r"rounded to (\d+) decimals", guidelines)
    decimals = int(asked[1]) if asked else None
    if re.search(r"either yes or no", guidelines):
        return Boolean(value=answer.lower() == "yes")
    if re.search(r"comma separated list", guidelines):
        return ListOf(items=tuple(Text(value=item.strip()) for item in answer.split(",")), ordered=False)
    label, colon, number = answer.partition(":")
    if colon and re.fullmatch(r"-?\d+(\.\d+)?", number):
        return Labelled(label=label, number=_number(number, decimals))
    if re.search(r"just a number", guidelines):
        return _number(answer, decimals)
    return Text(value=answer)


def _number(text: str, decimals: int | None) -> Number:
    if decimals is not None and decimals <= 6:
        return Number(value=float(text), decimals=decimals)
    return Number(value=float(text), rel_tol=1e-6)


def submission_line(task_id: str, answer: str | None, trace: str) -> bytes:
    """One line of a file for the leaderboard; an episode without an answer is submitted with an empty one."""
    line = {"task_id": task_id.removeprefix("dabstep-"), "agent_answer": answer or "", "reasoning_trace": trace}
    return msgspec.json.encode(line) + b"\n"
