"""Pass rates with their uncertainty."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

import msgspec

from jupyter_env.episode import EpisodeRecord

LEVELS = ("easy", "medium", "hard", "expert")


class PassRate(msgspec.Struct, frozen=True, kw_only=True):
    """Correct episodes out of those that count."""

    correct: int
    episodes: int
    """Without failures of the machine."""

    @property
    def rate(self) -> float:
        """From 0 to 1; not a number without episodes."""
        return self.correct / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval; see `wilson_interval`."""
        return wilson_interval(self.correct, self.episodes)


def wilson_interval(correct: int, episodes: int, z: float = 1.959964) -> tuple[float, float]:
    """Bounds of a proportion (Wilson 1927), sound for few episodes and for rates of 0 and 1; z = 1.96 is 95%."""
    if episodes == 0:
        return 0.0, 1.0
    share, spread = correct / episodes, z * z / episodes
    centre = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / episodes + spread / (4 * episodes)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_rates(records: Iterable[EpisodeRecord]) -> dict[str, dict[str, PassRate]]:
    """By agent, then by level in order of difficulty with "all" last."""
    counts: dict[str, dict[str, list[int]]] = {}
    for record in records:
        if record.stop_reason == "infrastructure_error":
            continue
        for level in (record.level, "all"):
            count = counts.setdefault(record.agent, {}).setdefault(level, [0, 0])
            count[0] += record.reward == 1.0
            count[1] += 1
    order = {level: rank for rank, level in enumerate((*LEVELS, "all"))}
    return {
        agent: {
            level: PassRate(correct=levels[level][0], episodes=levels[level][1])
            for level in sorted(levels, key=lambda level: order.get(level, -1))
        }
        for agent, levels in counts.items()
    }
