"""What an episode is rewarded for: named parts, each from 0 to 1, which a recipe gives weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jupyter_env.episode import EpisodeRecord

Part = Callable[[EpisodeRecord], float]


def correct(record: EpisodeRecord) -> float:
    """The strict verifier's score of the answer; 0 without one."""
    return record.reward or 0.0


def answered(record: EpisodeRecord) -> float:
    """Whether an answer was given at all, right or wrong."""
    return float(record.stop_reason == "answered")


def well_formed(record: EpisodeRecord) -> float:
    """Share of turns that held one valid call."""
    return 1.0 - record.malformed_turns / record.turns if record.turns else 0.0


def clean(record: EpisodeRecord) -> float:
    """Share of cells that ran without an error; 0 without cells."""
    return sum(cell.status == "ok" for cell in record.cells) / len(record.cells) if record.cells else 0.0


def brief(record: EpisodeRecord) -> float:
    """For right answers only, so that being short never pays by itself: 1 at two turns, 1/2 at four, ..."""
    return correct(record) * 2 / max(2, record.turns)


PARTS: dict[str, Part] = {
    "correct": correct,
    "answered": answered,
    "well_formed": well_formed,
    "clean": clean,
    "brief": brief,
}
"""`correct` is the one that counts. The others can be had without solving a task: keep their weights small, and
watch `watch.py`'s figures."""


def parts_of(record: EpisodeRecord, weights: Mapping[str, float]) -> dict[str, float | None]:
    """Each weighted part; None for all of them where the machine failed, so that TRL learns nothing from it."""
    if record.stop_reason == "infrastructure_error":
        return dict.fromkeys(weights)
    return {name: PARTS[name](record) for name in weights}


def total(parts: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The weighted sum; None where the machine failed."""
    known = [value * weights[name] for name, value in parts.items() if value is not None]
    return sum(known) if known else None


def reward_function(name: str, log: Callable[[Callable[[str, float], None]], None] | None = None) -> Any:
    """TRL's form of a part: it reads what the rollouts have put into the column of its name.

    Args:
        log: called with TRL's `log_metric`; given to one of the functions.
    """

    def reward(log_metric: Callable[[str, float], None], **columns: Any) -> list[float | None]:
        if log is not None:
            log(log_metric)
        values: list[float | None] = columns[column(name)]
        return values

    reward.__name__ = name
    return reward


def column(name: str) -> str:
    """Of the rollouts' output that holds a part."""
    return f"reward_{name}"
