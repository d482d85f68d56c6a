"""The statistics of scores: small, exact where that is possible, and none of it random without a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import comb, sqrt
from statistics import fmean

RESAMPLES = 5000
"""Of a bootstrap: bounds then move by less than half a point from seed to seed."""


def wilson_interval(correct: int, episodes: int, z: float = 1.959964) -> tuple[float, float]:
    """Bounds of a proportion (Wilson 1927), sound for few episodes and for rates of 0 and 1; z = 1.96 is 95%."""
    if episodes == 0:
        return 0.0, 1.0
    share, spread = correct / episodes, z * z / episodes
    centre = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / episodes + spread / (4 * episodes)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that one of `k` episodes is right, estimated without bias from `n` (Chen et al. 2021).

    Raises:
        ValueError: fewer than `k` episodes, from which it cannot be estimated.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} episodes of the task, got {correct} right of {n}")
    return 1.0 - comb(n - correct, k) / comb(n, k)


def cluster_interval(
    clusters: Sequence[float], seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> tuple[float, float]:
    """Bounds of a mean by the bootstrap over whole clusters (percentiles).

    Episodes of one task are alike, so that tasks, not episodes, are drawn again.

    Args:
        clusters: one value a task, the mean of its episodes; at least one.
    """
    means = sorted(_resampled_means(clusters, seed, resamples))
    cut = (1 - level) / 2
    return _quantile(means, cut), _quantile(means, 1 - cut)


def paired_bootstrap(
    differences: Sequence[float], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[tuple[float, float], float]:
    """The 95% bounds of a mean difference over tasks, and the two-sided p-value of there being none."""
    means = sorted(_resampled_means(differences, seed, resamples))
    below = sum(mean <= 0 for mean in means)
    above = sum(mean >= 0 for mean in means)
    p = min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))  # never 0: that would need endless resamples
    return (_quantile(means, 0.025), _quantile(means, 0.975)), p


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test, from the tasks that one alone of two agents has right."""
    discordant = only_first + only_second
    tail = sum(comb(discordant, i) for i in range(min(only_first, only_second) + 1)) / 2**discordant
    return min(1.0, 2.0 * float(tail))


def _resampled_means(values: Sequence[float], seed: int, resamples: int) -> list[float]:
    rng = random.Random(seed)
    return [fmean(rng.choices(values, k=len(values))) for _ in range(resamples)]


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values, between neighbours linearly."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
