"""Why two notebooks are, or are not, duplicates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline import ledger
from pipeline.ledger import DONE
from pipeline.matching import LineSets, Weights, similarities
from pipeline.order import STAGES
from pipeline.run import read_manifest
from pipeline.run_folder import RunFolder
from pipeline.skeleton import MIN_LINES, exact_key, skeleton_lines
from pipeline.stages.signatures import load_lines


class NotFoundError(KeyError):
    """An id that the run does not have."""


def find_row(folder: RunFolder, wanted: str) -> dict[str, Any]:
    """The row of a notebook by its id, or by an ending of it that only one has.

    Raises:
        NotFoundError: none or several.
    """
    hits = []
    for path in folder.all_parts("read"):
        ids = pq.read_table(path, columns=["id"])["id"].to_pylist()
        hits += [(path, row, name) for row, name in enumerate(ids) if name == wanted or name.endswith(wanted)]
    exact = [hit for hit in hits if hit[2] == wanted]
    if len(exact or hits) != 1:
        names = ", ".join(name for _, _, name in hits[:5]) or "none"
        raise NotFoundError(f"{wanted!r} is the id, or its ending, of {len(hits)} notebooks read ({names})")
    path, row, _ = (exact or hits)[0]
    found: dict[str, Any] = pq.read_table(path).slice(row, 1).to_pylist()[0]
    return found


def fate(folder: RunFolder, row: dict[str, Any]) -> str:
    """Where a notebook's way ended, and why."""
    last = "not decided yet"
    for stage in STAGES:
        lines, _ = ledger.read_lines(folder.ledger(stage, row["unit"]))
        for line in lines:
            for item in line.commit.items if line.commit else ():
                if (item.id, item.key) == (row["id"], row["key"]):
                    last = f"{stage}: {item.state}" + (f" ({item.reason}: {item.detail})" if item.state != DONE else "")
    return last


def explain(folder: RunFolder, first: str, second: str) -> dict[str, Any]:
    """What the two share, measured as the stages measure it, and what became of each."""
    rows = [find_row(folder, first), find_row(folder, second)]
    settings = read_manifest(folder).recipe.near
    lines = [skeleton_lines(row["code"]) for row in rows]
    common = lines[0] & lines[1]
    weighted = _weighted(folder, lines)
    exact = exact_key(rows[0]["code"]) == exact_key(rows[1]["code"])
    if exact:
        verdict = "the same code, blanks and comment lines aside"
    elif min(map(len, lines)) < MIN_LINES:
        verdict = f"not compared: one has fewer than {MIN_LINES} distinct lines, where only exact copies count"
    elif weighted >= settings.threshold:
        verdict = f"near duplicates: weighted similarity {weighted:.3f}, at least {settings.threshold} is needed"
    else:
        verdict = f"not duplicates: weighted similarity {weighted:.3f}, at least {settings.threshold} is needed"
    return {
        "a": rows[0]["id"],
        "b": rows[1]["id"],
        "verdict": verdict,
        "same_code": exact,
        "similarity": round(weighted, 4),
        "lines": [len(lines[0]), len(lines[1])],
        "common_lines": len(common),
        "proposed_with_chance": round(_chance(lines, settings.buckets, settings.hashes_per_bucket), 4),
        "only_a": _shown(lines[0] - common),
        "only_b": _shown(lines[1] - common),
        "common": _shown(common),
        "fate_a": fate(folder, rows[0]),
        "fate_b": fate(folder, rows[1]),
    }


def _chance(lines: list[set[bytes]], buckets: int, hashes: int) -> float:
    """That MinHash proposes the pair at all."""
    jaccard = len(lines[0] & lines[1]) / max(len(lines[0] | lines[1]), 1)
    return float(1 - (1 - jaccard**hashes) ** buckets)


def _weighted(folder: RunFolder, lines: list[set[bytes]]) -> float:
    import xxhash

    hashes = [
        np.array(sorted(xxhash.xxh3_64_intdigest(line) >> 32 for line in found), dtype=np.uint32) for found in lines
    ]
    pair = LineSets(np.concatenate(hashes), np.array([0, len(hashes[0]), len(hashes[0]) + len(hashes[1])]))
    signatures = folder.root / "signatures"
    corpus = load_lines(signatures, len(folder.units())) if (signatures / "starts").is_dir() else pair
    return float(similarities(pair, Weights(corpus), np.array([0]), np.array([1]))[0])


def _shown(lines: set[bytes], most: int = 8) -> list[str]:
    return [line.decode("utf-8", "replace")[:120] for line in sorted(lines, key=len, reverse=True)[:most]]
