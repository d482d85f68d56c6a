"""How good a set of duplicate decisions is, against the truth."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import msgspec


class Quality(msgspec.Struct, frozen=True):
    """Of one method on one corpus."""

    precision: float
    """Of the pairs it puts together, the share that belongs together."""
    recall: float
    """Of the pairs that belong together, the share it puts together."""
    duplicates_left: float
    """Of the copies beyond the first of each true cluster, the share that is still there."""
    clusters_lost: float
    """Of the true clusters, the share of which no member is left."""
    recall_by_kind: dict[str, float]
    """Of the copies made in each way, the share that was put together with the true cluster's base."""


def measure(truth: Sequence[tuple[int, str]], found: Sequence[int], kept: Sequence[bool]) -> Quality:
    """Judge.

    Args:
        truth: for each notebook its true cluster and how it was made.
        found: for each notebook the cluster that the method put it in.
        kept: whether it is still there.
    """
    together = Counter(zip(found, (cluster for cluster, _ in truth), strict=True))
    right = sum(map(_pairs, together.values()))
    claimed = sum(map(_pairs, Counter(found).values()))
    real = sum(map(_pairs, Counter(cluster for cluster, _ in truth).values()))
    members, left = Counter(cluster for cluster, _ in truth), Counter[int]()
    for (cluster, _), stays in zip(truth, kept, strict=True):
        left[cluster] += stays
    copies = sum(members.values()) - len(members)
    return Quality(
        precision=right / claimed if claimed else 1.0,
        recall=right / real if real else 1.0,
        duplicates_left=sum(max(0, left[cluster] - 1) for cluster in members) / copies,
        clusters_lost=sum(left[cluster] == 0 for cluster in members) / len(members),
        recall_by_kind=_by_kind(truth, found),
    )


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


def _by_kind(truth: Sequence[tuple[int, str]], found: Sequence[int]) -> dict[str, float]:
    bases = {cluster: place for (cluster, kind), place in zip(truth, found, strict=True) if kind == "base"}
    hits: dict[str, list[bool]] = defaultdict(list)
    for (cluster, kind), place in zip(truth, found, strict=True):
        if kind != "base":
            hits[kind].append(place == bases[cluster])
    return {kind: sum(flags) / len(flags) for kind, flags in sorted(hits.items())}
