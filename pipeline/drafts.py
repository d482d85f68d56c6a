"""A question as a model writes it, and as a task has it: typed answer, level by what its code does, files."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from jupyter_env.answer import Answer, Date, Integer, ListOf, Number, Text, reference_text, verify
from jupyter_env.literals import NotThisType, read_number, split_list
from jupyter_env.missing import REFERENCE_KEY
from jupyter_env.task import DataFile, Level, Task
from pipeline.catalog import input_path
from pipeline.reads import UNKNOWN

LEVELS: tuple[Level, ...] = ("easy", "medium", "hard", "expert")


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """One question as the model is asked to write it; flat, because models fill flat forms best."""

    reasoning: Annotated[str, Meta(max_length=2000)]
    question: Annotated[str, Meta(min_length=10, max_length=1000)]
    guidelines: Annotated[str, Meta(max_length=400)]
    kind: Literal["number", "integer", "text", "date"]
    """Of each value of the answer. Yes and no are none: half of all guesses would be right."""
    answer: Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(min_length=1, max_length=12)]
    """One value, or the items of a list."""
    decimals: Annotated[int, Meta(ge=0, le=6)] | None
    unit: Annotated[str, Meta(max_length=20)]
    ordered: bool
    evidence_cell: Annotated[int, Meta(ge=1)]
    evidence: Annotated[str, Meta(min_length=1, max_length=400)]
    level: Level
    code: Annotated[str, Meta(min_length=1, max_length=6000)]


class Drafts(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to the prompt `ask`."""

    questions: Annotated[list[Draft], Meta(max_length=8)]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A draft on its way through the checks."""

    draft: Draft
    answer: Answer | None = None
    """Typed; none where the draft's text is none of its kind."""
    level: Level = "easy"
    """The lower of what the draft claims and what its code does."""
    checks: dict[str, Any] = {}
    """By check, what it found."""
    rejected: str = ""
    """The reason of the first check that failed."""
    detail: str = ""


class DraftError(ValueError):
    """A draft whose answer is not of the kind that it says."""


def typed_answer(draft: Draft) -> Answer:
    """The answer in the verifier's terms.

    Raises:
        DraftError: the text is no answer of this kind, or none that the verifier could ever accept.
    """
    try:
        items = tuple(_typed(text.strip(), draft) for text in draft.answer)
        answer = items[0] if len(items) == 1 else ListOf(items=items, ordered=draft.ordered)
    except (ValueError, OverflowError) as error:  # NotThisType is one
        raise DraftError(f"{draft.answer} as {draft.kind}: {error}") from None
    if not verify(reference_text(answer), answer).correct:
        raise DraftError(f"{draft.answer} as {draft.kind} does not verify as its own text")
    return answer


def _typed(text: str, draft: Draft) -> Answer:
    if draft.kind == "text":
        return Text(value=text)
    if draft.kind == "date":
        return Date(value=text)
    unit = draft.unit.strip() or None
    value = read_number(text, unit=unit)
    whole = value == value.to_integral_value()
    if draft.kind == "integer" or (whole and not draft.decimals and "." not in text):
        if not whole:
            raise NotThisType("not a whole number")
        return Integer(value=int(value), unit=unit)
    written = len(text.partition(".")[2].rstrip("% "))
    return Number(value=float(value), decimals=written if draft.decimals is None else draft.decimals, unit=unit)


def refined(answer: Answer, printed: str) -> Answer:
    """The answer with numbers as code has printed them, unrounded: then every correct rounding is right.

    Args:
        printed: a text that verifies as the answer.
    """
    if isinstance(answer, ListOf):
        texts = split_list(printed, len(answer.items))
        if answer.ordered and len(texts) == len(answer.items):
            items = tuple(refined(item, text) for item, text in zip(answer.items, texts, strict=True))
            return msgspec.structs.replace(answer, items=items)
    if isinstance(answer, Number):
        return msgspec.structs.replace(answer, value=float(read_number(printed, unit=answer.unit)))
    return answer


def lower_level(one: Level, other: Level) -> Level:
    """The easier of two."""
    return min(one, other, key=LEVELS.index)


UNKNOWN_CONTENT = "0" * 64
"""In place of the sha256 of a table that is not here: no file has it, so that none is ever taken for it."""


def data_files(row: dict[str, Any]) -> tuple[DataFile, ...]:
    """A notebook's files as a task's, each once; below `data/` they lie as in the folder of data sets.

    Where none is here, those that the notebook names: for a model that stands in for the interpreter.
    """
    found = {f"{file['dataset']}/{file['file']}": file["sha256"] for file in row["files"] or ()}
    if not found:
        found = {path: UNKNOWN_CONTENT for name in row["missing"] or () if (path := missing_path(name))}
    return tuple(DataFile(path=path, sha256=sha256) for path, sha256 in sorted(found.items()))


def missing_path(name: str) -> str:
    """Where a table that is not here is said to be, below `data/`: as below Kaggle's input folder, else its name alone;
    empty for a path that is not known."""
    path = input_path(name) or PurePosixPath(name.replace("\\", "/")).name
    parts = [part for part in path.split("/") if part not in ("", ".", "..") and ":" not in part and "\0" not in part]
    return "" if UNKNOWN in name or not parts else "/".join(parts)


def make_task(name: str, candidate: Candidate, row: dict[str, Any]) -> Task:
    """The task of a candidate.

    Args:
        row: of the stage `ask`: the notebook's columns.

    Raises:
        ValueError: a field that no task may have.
    """
    assert candidate.answer is not None
    draft = candidate.draft
    return Task(
        id=name,
        question=draft.question.strip(),
        guidelines=draft.guidelines.strip(),
        answer=candidate.answer,
        files=data_files(row),
        level=candidate.level,
        dataset=", ".join(row["datasets"] or ()),
        source=f"notebook {row['id']}",
        licence=row["license"] or "",
        reference_code=draft.code,
        metadata={
            "notebook": row["id"],
            "edu_score": row["edu_score"],
            "packages": list(row["packages"] or ()),
            "evidence": {"cell": draft.evidence_cell, "text": draft.evidence},
            "checks": candidate.checks,
            "missing": list(row["missing"] or ()),
            **({REFERENCE_KEY: row["reference"]} if row["reference"] else {}),
        },
    )
