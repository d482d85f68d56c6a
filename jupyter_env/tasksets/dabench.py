"""InfiAgent-DABench: 257 closed questions about 52 tables, with its own three metrics.

Source: `examples/DA-Agent/eval_closed_form.py` of github.com/InfiAgent/InfiAgent; the files are those of the hub data
set infiagent/DABench (Apache-2.0). One difference, against us: the published script leaves unanswered questions out
of its averages, here they count as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from jupyter_env.answer import Answer, Integer, Named, Number, Text
from jupyter_env.task import DataFile, Task, TaskError, TaskPool
from jupyter_env.tasksets.download import from_hub, one_of, read_rows

HUB = "infiagent/DABench"


def load(folder: str | Path | None = None) -> TaskPool:
    """The questions with their tables.

    Args:
        folder: holds `*questions.jsonl`, `*labels.jsonl` and the folder `*tables`; None downloads it from the hub.

    Raises:
        TaskError: a file or a table is missing, or a row is broken.
    """
    root = Path(folder) if folder is not None else from_hub(HUB, "da-dev-*")
    tables = one_of(root, "*tables")
    labels = {row["id"]: row["common_answers"] for row in read_rows(one_of(root, "*labels.jsonl"))}
    return TaskPool((_task(row, labels, tables) for row in read_rows(one_of(root, "*questions.jsonl"))), tables)


def _task(row: dict[str, Any], labels: dict[int, list[list[str]]], tables: Path) -> Task:
    if not (tables / row["file_name"]).is_file():
        raise TaskError(f"question {row['id']} is about {tables / row['file_name']}, which is missing")
    expected = dict(labels[row["id"]])
    asked = re.findall(r"@(\w+)\[", row["format"])
    return Task(
        id=f"dabench-{row['id']}",
        question=row["question"],
        guidelines=f"{row['constraints']}\n\nGive the answer in this form: {row['format']}",
        answer=Named(
            values={name: typed(label) for name, label in expected.items()},
            unchecked=tuple(dict.fromkeys(name for name in asked if name not in expected)),
        ),
        files=(DataFile.of(row["file_name"], tables),),
        level=row["level"],
        dataset=row["file_name"],
        source="InfiAgent-DABench",
        licence="Apache-2.0",
        metadata={"benchmark": "dabench", "labels": expected, "concepts": row["concepts"]},
    )


def typed(label: str) -> Answer:
    """A label as a strict answer: numbers to the decimals they are written with, words in any case."""
    if re.fullmatch(r"-?\d+", label):
        return Integer(value=int(label))
    if re.fullmatch(r"-?\d*\.\d+", label):
        return Number(value=float(label), decimals=len(label.partition(".")[2]))
    return Text(value=label)  # "True" too: the formats say which of True and yes is to be written


def score(answer: str | None, labels: dict[str, str]) -> dict[str, bool]:
    """Which of the labels the published script finds in an answer."""
    given = dict(re.findall(r"@(\w+)\[(.*?)\]", answer or ""))
    return {name: name in given and _equal(given[name], label) for name, label in labels.items()}


def _equal(given: str, label: str) -> bool:
    if given == label:
        return True
    try:
        return abs(float(given) - float(label)) < 1e-6
    except ValueError:
        return False


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The three published metrics, each from 0 to 1."""

    psaq: float
    """Proportional accuracy by subquestions: the mean share of right labels in a question."""
    abq: float
    """Accuracy by questions: all labels right."""
    uasq: float
    """Uniform accuracy by subquestions: right labels of all labels."""


def metrics(scores: Sequence[dict[str, bool]]) -> Metrics:
    """Of the scores of at least one episode; an episode without an answer has nothing right."""
    rights = [list(right.values()) for right in scores]
    return Metrics(
        psaq=sum(sum(right) / len(right) for right in rights) / len(rights),
        abq=sum(map(all, rights)) / len(rights),
        uasq=sum(map(sum, rights)) / sum(map(len, rights)),
    )
