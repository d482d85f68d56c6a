"""Which questions must stay on one side of a split: those that share a table, a data set, a notebook or its forks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any


def groups(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each row's group (union-find over all that rows share), the same in any order of the rows.

    Args:
        rows: of the stage `unique`.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for row in rows:
        first, *others = _keys(row)
        for other in others:
            one, two = sorted((root(first), root(other)))
            parent[two] = one  # the least name stands for the group
    return [root(f"notebook {row['notebook']}") for row in rows]


def _keys(row: dict[str, Any]) -> Iterable[str]:
    yield f"notebook {row['notebook']}"
    for name in row["datasets"] or ():
        yield f"data set {name.partition('@')[0]}"  # versions of one data set share rows
    for sha256 in row["hashes"] or ():
        yield f"table {sha256}"
    for kernel in (row["kernel_version"], row["forked_from"]):
        if kernel is not None:
            yield f"kernel version {kernel}"


def held_out(names: Sequence[str], share: float, seed: int) -> set[str]:
    """The groups to hold out: whole ones, by the hash of their names, while the share comes nearer by it; one at least,
    if that leaves something to train on, for a model must be tried on something."""
    sizes = Counter(names)
    order = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())
    held: set[str] = set()
    count, wanted = 0, share * len(names)
    for name in order:
        if len(held) + 1 < len(order) and abs(count + sizes[name] - wanted) < abs(count - wanted):
            held.add(name)
            count += sizes[name]
    if not held and share > 0 and len(order) > 1:
        held.add(min(order, key=lambda name: (sizes[name], order.index(name))))
    return held
