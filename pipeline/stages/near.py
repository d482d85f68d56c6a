"""Stage 3: of notebooks with nearly the same code, renamed copies included, the best is kept.

`NotebookSignature` (signatures.py) writes the signatures, `NearMatch` finds the clusters in one process, `Near`
carries its decisions out. datatrove's own later blocks read the same signature files; they are not used because they
link every pair that shares a bucket, unseen, keep the first of a cluster, not the best, and hold it in Python dicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from datatrove.pipeline.base import PipelineStep

from pipeline import best, decisions
from pipeline.ledger import LedgerError
from pipeline.matching import LineSets, MatchSettings, Weights, link, similarities
from pipeline.parts import write_aside
from pipeline.run_folder import RunFolder
from pipeline.skeleton import LINES_VERSION
from pipeline.stages.exact import Decided, columns_of
from pipeline.stages.read import SCHEMA
from pipeline.stages.signatures import load_lines, minhash_config, record_type


class NearMatch(PipelineStep):  # type: ignore[misc]
    """Finds the clusters of near duplicates among all rows; one task."""

    type = "notebooks"
    name = "near-match"

    def __init__(self, folder: RunFolder, settings: MatchSettings) -> None:
        super().__init__()
        self.run_folder, self.settings = folder, settings

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the decisions and the report of clusters, unless they are there."""
        folder, units = self.run_folder, self.run_folder.units()
        out = folder.folder("decisions") / "near"
        mark = decisions.basis(folder, "exact", units, [LINES_VERSION, self.settings])
        found = decisions.current(out)
        if found and found.basis == mark:
            return
        signatures = folder.folder("signatures")
        table, first_rows = columns_of(folder, "exact", units, best.COLUMNS)
        sets = load_lines(signatures, len(units))
        weights = Weights(sets)
        with self.track_time("all"):
            clusters = find_clusters(sets, weights, self.settings, bands(signatures, first_rows, sets, self.settings))
        kept, similar = keep_best(clusters, best.order_of_merit(table), sets, weights, self.settings)
        going = int((kept != np.arange(len(kept))).sum())
        ids = columns_of(folder, "exact", units, ["id"])[0]["id"]
        decisions.write(out, mark, units, first_rows, kept, ["near_duplicate"] * going, similar, ids)
        sizes = np.bincount(clusters)
        write_aside(folder.root / "clusters.json", msgspec.json.encode(report(clusters, sizes, kept, ids)))
        self.stat_update("duplicates", value=going)


def bands(
    signatures: Path, first_rows: np.ndarray, sets: LineSets, settings: MatchSettings
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each bucket the rows' numbers and keys, from datatrove's signature files.

    Raises:
        LedgerError: a file has not a record for each row with lines.
    """
    kind = record_type(minhash_config(settings))
    signed = np.add.reduceat(np.r_[np.diff(sets.starts) > 0, False], first_rows[:-1], dtype=np.int64)
    signed[np.diff(first_rows) == 0] = 0
    for bucket in range(settings.buckets):
        numbers, keys = [], []
        for unit, first in enumerate(first_rows[:-1]):
            path = signatures / f"bucket_{bucket:03d}" / f"{unit:05d}.minhash.sig"
            records = np.fromfile(path, dtype=kind)
            if len(records) != signed[unit]:
                raise LedgerError(
                    f"{path} holds {len(records):,} signatures where {signed[unit]:,} rows have lines; "
                    f"remove {signatures / f'{unit:05d}.mark'} and run again"
                )
            numbers.append(records["document"].astype(np.int64) + first)
            keys.append(_mixed(records, settings.hashes_per_bucket))
        yield np.concatenate(numbers), np.concatenate(keys)


def _mixed(records: np.ndarray, hashes: int) -> np.ndarray:
    """One uint64 for a bucket's hashes; that two differ and mix alike is caught by the verification."""
    key = np.zeros(len(records), dtype=np.uint64)
    for column in range(hashes):
        key = (key ^ records[f"h{column}"]) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


def find_clusters(
    sets: LineSets, weights: Weights, settings: MatchSettings, proposed: Iterator[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """(sets) The cluster of each."""

    def verify(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        alike: np.ndarray = similarities(sets, weights, left, right) >= settings.threshold
        return alike

    return link(len(sets), proposed, verify)


def keep_best(
    clusters: np.ndarray, merit: np.ndarray, sets: LineSets, weights: Weights, settings: MatchSettings
) -> tuple[np.ndarray, np.ndarray]:
    """(sets, sets) The set kept in each one's place and the similarity to it.

    What is too far from the kept one is looked at again among its like, until nothing changes.
    """
    rows = np.arange(len(clusters))
    groups = clusters.astype(np.int64).copy()
    while True:
        kept = best.best_of_groups(groups, merit)
        similar = np.ones(len(rows))
        going = np.flatnonzero(kept != rows)
        similar[going] = similarities(sets, weights, going, kept[going])
        far = going[similar[going] < settings.keep_threshold]
        if not len(far):
            return kept, similar
        groups[far] += groups.max() + 1


def report(clusters: np.ndarray, sizes: np.ndarray, kept: np.ndarray, ids: Any) -> dict[str, Any]:
    """How large the clusters are, and the ids of the largest: the place to look for over-merging."""
    largest = np.argsort(-sizes, kind="stable")[:20]
    members = {int(cluster): np.flatnonzero(clusters == cluster) for cluster in largest if sizes[cluster] > 1}
    return {
        "notebooks": len(clusters),
        "clusters": len(sizes),
        "kept": int((kept == np.arange(len(kept))).sum()),
        "sizes": {str(size): count for size, count in sorted(Counter(sizes.tolist()).items())},
        "over_1000": int((sizes > 1000).sum()),
        "largest": [
            {
                "size": len(rows),
                "kept": sorted({ids[int(kept[row])].as_py() for row in rows})[:5],
                "members": [ids[int(row)].as_py() for row in rows[:10]],
            }
            for rows in members.values()
        ],
    }


class Near(Decided):
    """Rejects all but the best of the notebooks of a cluster."""

    name = "near"
    version = 1
    upstream = "exact"
    schema = SCHEMA

    def __init__(self, folder: RunFolder, settings: MatchSettings) -> None:
        super().__init__(folder)
        self.settings = settings

    def config(self) -> Any:
        """The settings, which the decisions depend on."""
        return msgspec.to_builtins(self.settings)
