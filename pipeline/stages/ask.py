"""Stage 7: each notebook scored, questions written, read again by a second call and tried without the files.

The calls of one notebook go back to back with the notebook first, so that the server computes it once. A call that the
cheap checks make needless is not made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Annotated, Any, cast

import msgspec
import pyarrow as pa
from msgspec import Meta

from jupyter_env.action import Message
from jupyter_env.answer import reference_text, verify
from jupyter_env.chat import neutral
from jupyter_env.tasksets.benchmark_questions import is_benchmark_question
from pipeline.calls import BadReply
from pipeline.drafts import Candidate, Draft, DraftError, Drafts, lower_level, missing_path, typed_answer
from pipeline.evidence import missing_evidence
from pipeline.excerpt import excerpt, output_of
from pipeline.model_stage import ModelStage
from pipeline.models import ModelSettings
from pipeline.prompts import prompt
from pipeline.run_folder import RunFolder
from pipeline.stage import Item, Rejected, Row
from pipeline.stages.data import FILE
from pipeline.triviality import level_of, steps, why_unwanted

PROMPTS = ("system", "notebook", "score", "ask", "read", "blind")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("unit", pa.string()),
        ("kernel_version", pa.int64()),
        ("forked_from", pa.int64()),
        ("repo", pa.string()),
        ("license", pa.string()),
        ("packages", pa.list_(pa.string())),
        ("datasets", pa.list_(pa.string())),
        ("files", pa.list_(FILE)),
        ("missing", pa.list_(pa.string())),
        ("edu_score", pa.int8()),
        ("justification", pa.string()),
        ("reference", pa.string()),
        ("candidates", pa.list_(pa.string())),
        ("count", pa.int32()),
    ]
)


class AskSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked, and of which notebooks."""

    min_score: int = 4
    """Of 5; the published threshold."""
    max_tokens: int = 8000
    """Of the notebook in the prompt, by estimate; the mean notebook has fewer, the largest a hundred times as many."""
    levels: tuple[str, ...] = ("hard", "hard", "medium", "expert", "medium")
    """Wanted of the questions, one each: models left to themselves write trivial ones."""
    min_steps: int = 2
    """Operations on the data in the reference code; one is a count or a mean."""
    blind_attempts: int = 2
    """Answers asked for without the files; a question that one of them gets right is rejected."""
    in_flight: int = 0
    """Notebooks at a time; 0 takes what the server's cache has room for, shared among the recipe's workers."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to the prompt `score`: first the reasons."""

    justification: Annotated[str, Meta(max_length=1500)]
    educational_score: Annotated[int, Meta(ge=0, le=5)]
    is_data_analysis: bool
    uses_its_tables: bool
    trains_language_models: bool


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to the prompt `read`: the second reader's."""

    reasoning: Annotated[str, Meta(max_length=2000)]
    answerable: bool
    ambiguous: bool
    answer: Annotated[str, Meta(max_length=400)]


class Guess(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to the prompt `blind`."""

    reasoning: Annotated[str, Meta(max_length=2000)]
    answer: Annotated[str, Meta(max_length=400)]


class Ask(ModelStage):
    """Rejects notebooks by the score; the questions of the others go on, each with what was found against it."""

    name = "ask"
    version = 1
    upstream = "render"
    schema = SCHEMA
    takes_over = True

    def __init__(self, folder: RunFolder, settings: AskSettings, model: ModelSettings, workers: int = 1) -> None:
        servers = max(1, len(model.endpoints))
        room = servers * model.conversations_in_cache(settings.max_tokens + 2 * model.max_tokens)
        super().__init__(folder, {"asker": model}, settings.in_flight or max(1, room // max(1, workers)))
        self.settings = settings

    def config(self) -> Any:
        """Settings, model and prompts."""
        settings = msgspec.to_builtins(msgspec.structs.replace(self.settings, in_flight=0))
        return [settings, self.models["asker"].identity, [prompt(name).identity for name in PROMPTS]]

    async def judge(self, item: Item) -> Row | Rejected:
        """Score, ask, and try each question in what needs no kernel."""
        row: Row = item.payload
        opening = notebook_message(row, self.settings.max_tokens)
        try:
            score = await self.model("asker").structured(item.key, _with(opening, prompt("score").fill()), Score)
            if rejected := self._too_low(score):
                return rejected
            drafts = await self.model("asker").structured(item.key, _with(opening, self._request()), Drafts)
        except BadReply as error:
            return Rejected(error.reason, error.detail)
        if not drafts.questions:
            return Rejected("no_questions")
        # At the same time: the cache has the notebook by now, and a batch of few requests leaves a GPU idle.
        candidates = await _all(self._candidate(item, draft, row, opening) for draft in drafts.questions)
        kept = {name: row[name] for name in SCHEMA.names if name in row}
        return {
            **kept,
            "edu_score": score.educational_score,
            "justification": score.justification,
            # For the model that stands in for the interpreter, where there is no table.
            "reference": "" if row["files"] else excerpt(row["text"], self.settings.max_tokens),
            "candidates": [msgspec.json.encode(candidate).decode() for candidate in candidates],
            "count": len(candidates),
        }

    def _request(self) -> str:
        levels = self.settings.levels
        return prompt("ask").fill(count=str(len(levels)), levels=", ".join(levels))

    def _too_low(self, score: Score) -> Rejected | None:
        said = f"{score.educational_score}: {score.justification}"
        if score.trains_language_models:
            return Rejected("trains_language_models", said)
        if not score.is_data_analysis:
            return Rejected("no_data_analysis", said)
        if not score.uses_its_tables:
            return Rejected("uses_no_tables", said)
        if score.educational_score < self.settings.min_score:
            return Rejected("low_score", said)
        return None

    async def _candidate(self, item: Item, draft: Draft, row: Row, opening: str) -> Candidate:
        """The draft with what was found, up to the first check that it fails."""
        found = unfit(draft, row["text"], self.settings.min_steps)
        if found.rejected:
            return found
        assert found.answer is not None
        asked = prompt("read").fill(question=neutral(draft.question), guidelines=neutral(draft.guidelines))
        try:
            reading = await self.model("asker").structured(item.key, _with(opening, asked), Reading)
        except BadReply as error:
            return _rejected(found, "reader_" + error.reason, error.detail)
        checks = {**found.checks, "second_reader": reading.answer}
        found = msgspec.structs.replace(found, checks=checks)
        if reading.ambiguous:
            return _rejected(found, "ambiguous", reading.reasoning)
        if not reading.answerable:
            return _rejected(found, "not_answerable", reading.reasoning)
        assert found.answer is not None
        verdict = verify(reading.answer, found.answer)
        if not verdict.correct:
            return _rejected(found, "second_reader_disagrees", verdict.reason)
        return await self._guessed(item, found)

    async def _guessed(self, item: Item, candidate: Candidate) -> Candidate:
        """The candidate after attempts without the files."""
        draft, answer = candidate.draft, candidate.answer
        assert answer is not None
        asked = prompt("blind").fill(question=neutral(draft.question), guidelines=neutral(draft.guidelines))
        guesses = []
        for seed in range(self.settings.blind_attempts):
            try:
                messages = [{"role": "user", "content": asked}]
                guess = await self.model("asker").structured(item.key, messages, Guess, seed=seed)
            except BadReply as error:  # a refusal, mostly: no right answer, which is what is asked
                guesses.append(f"({error.reason})")
            else:
                guesses.append(guess.answer)
        candidate = msgspec.structs.replace(candidate, checks={**candidate.checks, "blind": guesses})
        right = [guess for guess in guesses if verify(guess, answer).correct]
        said = f"{len(right)} of {len(guesses)} answers given without the files are right"
        return _rejected(candidate, "guessable", said) if right else candidate


def notebook_message(row: Row, max_tokens: int) -> str:
    """What every prompt about a notebook begins with: the same text, to the letter."""
    files = [
        f"- data/{file['dataset']}/{file['file']} (in the notebook {file['read']!r})" for file in row["files"] or ()
    ]
    lost = [(missing_path(name), name) for name in row["missing"] or ()]
    files += [f"- data/{path} (in the notebook {name!r})" for path, name in lost if path and not row["files"]]
    return prompt("notebook").fill(
        mark=row["key"][:12], notebook=excerpt(row["text"], max_tokens).strip("\n"), files=neutral("\n".join(files))
    )


def _with(opening: str, task: str) -> list[Message]:
    """A conversation that begins with the notebook and ends with what is to be done."""
    return [{"role": "system", "content": prompt("system").fill().strip()}, {"role": "user", "content": opening + task}]


def unfit(draft: Draft, text: str, min_steps: int) -> Candidate:
    """The draft as a candidate, after the checks that need no model and no kernel.

    Args:
        text: of the notebook, whole.
    """
    candidate = Candidate(draft=draft, level=draft.level)
    try:
        candidate = msgspec.structs.replace(candidate, answer=typed_answer(draft))
    except DraftError as error:
        return _rejected(candidate, "answer_not_of_its_kind", str(error))
    if is_benchmark_question(draft.question):
        return _rejected(candidate, "benchmark_question")
    if unwanted := why_unwanted(draft.question):
        return _rejected(candidate, *unwanted)
    try:
        count = steps(draft.code)
    except (SyntaxError, ValueError, RecursionError) as error:
        return _rejected(candidate, "code_is_no_python", str(error))
    candidate = msgspec.structs.replace(candidate, level=lower_level(draft.level, level_of(count)))
    if count < min_steps:
        return _rejected(candidate, "trivial", f"{count} steps in the code")
    output = output_of(text, draft.evidence_cell)
    if output is None:
        return _rejected(candidate, "not_in_output", f"cell {draft.evidence_cell} has no output")
    assert candidate.answer is not None
    if lacking := missing_evidence(candidate.answer, draft.evidence, output):
        return _rejected(candidate, "not_in_output", lacking)
    found = {"in_output": {"cell": draft.evidence_cell, "answer": reference_text(candidate.answer)}, "steps": count}
    return msgspec.structs.replace(candidate, checks=found)


async def _all(asked: Iterable[Awaitable[Candidate]]) -> list[Candidate]:
    """All results; an exception only once all have ended, so that no reply is thrown away that is being paid for."""
    results = await asyncio.gather(*asked, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[Candidate], results)


def _rejected(candidate: Candidate, reason: str, detail: str = "") -> Candidate:
    return msgspec.structs.replace(candidate, rejected=reason, detail=detail[:500])
