"""Near duplicates among many sets of line hashes: bands propose pairs, the sets themselves confirm them.

Guards against merging what only looks alike:

- a pair counts only if the weighted Jaccard similarity of its two whole sets is high enough; a line weighs less the
  more notebooks have it, so that shared boilerplate confirms nothing while shared rare lines do;
- of a cluster the best is kept, and a member goes only if it resembles that one too: a long chain of small changes
  does not take its far end along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class MatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How alike is a duplicate."""

    buckets: int = 32
    hashes_per_bucket: int = 4
    """32 x 4 proposes 99.7% of the pairs with similarity 0.6, and is cheap because verification follows."""
    threshold: float = 0.6
    """The weighted similarity from which two notebooks are linked."""
    keep_threshold: float = 0.35
    """Below this similarity to the one that is kept, a linked notebook is kept as well."""
    seed: int = 1


class LineSets:
    """Sets of line hashes, flat: set i is `hashes[starts[i]:starts[i + 1]]`, sorted.

    Args:
        hashes: (lines) uint32; may be mapped from a file.
        starts: (sets + 1) int64.
    """

    def __init__(self, hashes: np.ndarray, starts: np.ndarray) -> None:
        self.hashes, self.starts = hashes, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, number: int) -> np.ndarray:
        """One set."""
        return self.hashes[self.starts[number] : self.starts[number + 1]]

    def gathered(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of several sets one after the other, and for each the position of its set in `numbers`."""
        begins = self.starts[numbers]
        lengths = self.starts[numbers + 1] - begins
        owners = np.repeat(np.arange(len(numbers)), lengths)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self.hashes[np.repeat(begins, lengths) + within], owners


class Weights:
    """How much a line tells, from the number of sets that have it, counted in 2^22 cells by hash.

    Lines that share a cell are taken for more common than they are, which errs on the side of not merging.
    """

    cells = 1 << 22

    def __init__(self, sets: LineSets, chunk: int = 1 << 22) -> None:
        counts = np.zeros(self.cells, dtype=np.int32)
        for begin in range(0, len(sets.hashes), chunk):
            found, times = np.unique(self._cell(sets.hashes[begin : begin + chunk]), return_counts=True)
            counts[found] += times.astype(np.int32)
        self.counts = counts

    def _cell(self, hashes: np.ndarray) -> np.ndarray:
        return hashes >> np.uint32(10)

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """1 for a line that one notebook has, 0.3 for ten, 0.13 for a thousand."""
        weights: np.ndarray = 1.0 / (1.0 + np.log(np.maximum(self.counts[self._cell(hashes)], 1)))
        return weights


def similarities(
    sets: LineSets, weights: Weights, left: np.ndarray, right: np.ndarray, batch: int = 20_000
) -> np.ndarray:
    """(pairs) The weighted Jaccard similarity of each pair of sets."""
    found = [
        _similarities(sets, weights, left[i : i + batch], right[i : i + batch]) for i in range(0, len(left), batch)
    ]
    return np.concatenate(found) if found else np.empty(0)


def _similarities(sets: LineSets, weights: Weights, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    (a, a_pair), (b, b_pair) = sets.gathered(left), sets.gathered(right)
    hashes, pairs = np.concatenate([a, b]), np.concatenate([a_pair, b_pair])
    total = np.bincount(pairs, weights.of(hashes), minlength=len(left))
    order = np.lexsort((hashes, pairs))
    hashes, pairs = hashes[order], pairs[order]
    twice = (hashes[1:] == hashes[:-1]) & (pairs[1:] == pairs[:-1])
    common = np.bincount(pairs[1:][twice], weights.of(hashes[1:][twice]), minlength=len(left))
    jaccard: np.ndarray = common / np.maximum(total - common, 1e-12)
    return jaccard


def link(
    count: int,
    bands: Iterable[tuple[np.ndarray, np.ndarray]],
    verify: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """The clusters of `count` sets.

    Args:
        bands: for each band the sets' numbers and their keys (uint64); numbers with equal keys ascend.
        verify: which of the pairs (left, right) are duplicates.

    Returns:
        (count) The cluster of each set, numbered from 0.
    """
    labels = np.arange(count, dtype=np.int32)
    refused = np.empty(0, dtype=np.uint64)
    for numbers, keys in bands:
        for left, right in _proposed(numbers, keys):
            pairs = _new_pairs(left, right, labels, refused)
            left, right = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
            same = verify(left, right)
            refused = np.union1d(refused, pairs[~same])
            if same.any():
                labels = _merged(labels, labels[left[same]], labels[right[same]])
    return np.unique(labels, return_inverse=True)[1]


def _new_pairs(left: np.ndarray, right: np.ndarray, labels: np.ndarray, refused: np.ndarray) -> np.ndarray:
    """The pairs that are neither linked nor refused already, each as one number, sorted."""
    apart = labels[left] != labels[right]
    pairs = np.unique(left[apart].astype(np.uint64) << np.uint64(32) | right[apart].astype(np.uint64))
    new: np.ndarray = pairs[~_among(pairs, refused)]
    return new


def _proposed(numbers: np.ndarray, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of the sets with equal keys, each with the one before it, then each with the first."""
    if not len(numbers):  # all notebooks are too short to be compared
        return
    order = np.argsort(keys, kind="stable")  # the numbers of equal keys ascend already
    ordered = numbers[order].astype(np.int32)
    keys = keys[order]
    del order
    same = keys[1:] == keys[:-1]
    del keys
    here = np.flatnonzero(same) + 1
    yield ordered[here - 1], ordered[here]
    starts = np.flatnonzero(np.r_[True, ~same])
    firsts = np.repeat(ordered[starts], np.diff(np.r_[starts, len(ordered)]))
    yield firsts[here], ordered[here]


def _among(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    if not len(among):
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(among, values), len(among) - 1)
    found: np.ndarray = among[places] == values
    return found


def _merged(labels: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    count = len(labels)
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(count, count))
    merged: np.ndarray = connected_components(graph, directed=False)[1][labels].astype(np.int32)
    return merged
