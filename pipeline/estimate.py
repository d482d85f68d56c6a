"""What the models' stages would cost: calls, tokens and GPU hours, before one of them is asked."""

from __future__ import annotations

from typing import Any

from pipeline.excerpt import estimate_tokens
from pipeline.models import ModelSettings
from pipeline.parts import read_rows
from pipeline.prompts import prompt
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.stages.ask import notebook_message

RULES_SHARE = 0.3
"""Of the notebooks read, how many come to the models where that is not known yet: 61 of 199 real ones."""
NOTEBOOK_TOKENS = 5800
"""Of a notebook's prompt where none is rendered yet: the mean of 576 real ones, cut at 30,000 characters."""
SCORE_SHARE = 0.3
"""Of the scored, how many are asked about: the published filter removed about 70%."""
KEPT_SHARE = 0.4
"""Of the questions, how many pass the checks; a guess until a run has shown its own share."""
TURNS, TURN_TOKENS, OBSERVATION_TOKENS = 8, 300, 400
"""Of an episode: turns, what the teacher writes in one, what it is shown."""
SCORE_OUT, QUESTION_OUT, READ_OUT, GUESS_OUT = 150, 450, 200, 120
"""Tokens that a reply has."""


def estimate(folder: RunFolder, recipe: Recipe, notebooks: int) -> dict[str, Any]:
    """Calls and tokens of each role, and what they would take.

    Args:
        notebooks: in the input, where it has not been rendered yet.
    """
    rendered, shared = _rendered(folder, recipe)
    count = rendered or round(RULES_SHARE * notebooks)
    shared = shared if rendered else count * NOTEBOOK_TOKENS
    asked = SCORE_SHARE * count
    questions = asked * len(recipe.ask.levels)
    tasks = {name: estimate_tokens(prompt(name).text) for name in ("score", "ask", "read", "blind")}
    blind = questions * recipe.ask.blind_attempts
    asker = {
        "calls": round(count + asked + questions + blind),
        # The notebook once, and each task after it: the cache has the rest.
        "prefill_tokens": round(
            shared + count * tasks["score"] + asked * tasks["ask"] + questions * tasks["read"] + blind * tasks["blind"]
        ),
        "decode_tokens": round(count * SCORE_OUT + questions * (QUESTION_OUT + READ_OUT) + blind * GUESS_OUT),
    }
    plan: dict[str, Any] = {"notebooks_scored": count, "from": "this run" if rendered else "shares of other runs"}
    plan["asker"] = {**asker, **_time(asker, recipe.asker)}
    if recipe.teacher.name:
        episodes = KEPT_SHARE * questions * recipe.traces.attempts
        teacher = {
            "calls": round(episodes * TURNS),
            "prefill_tokens": round(episodes * (1000 + TURNS * OBSERVATION_TOKENS)),
            "decode_tokens": round(episodes * TURNS * TURN_TOKENS),
        }
        plan["teacher"] = {**teacher, **_time(teacher, recipe.teacher)}
    return plan


def _rendered(folder: RunFolder, recipe: Recipe) -> tuple[int, int]:
    """How many notebooks are rendered, and the tokens of all their prompts' shared beginning."""
    count = tokens = 0
    system = estimate_tokens(prompt("system").text)
    for row in read_rows(folder.all_parts("render")):
        count += 1
        tokens += system + estimate_tokens(notebook_message(row, recipe.ask.max_tokens))
    return count, tokens


def _time(work: dict[str, int], model: ModelSettings) -> dict[str, float]:
    seconds = work["prefill_tokens"] / model.prefill_tokens_per_s + work["decode_tokens"] / model.decode_tokens_per_s
    return {"gpu_hours": round(seconds / 3600 * model.gpus, 2)}
