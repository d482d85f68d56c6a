"""What became of the notebooks: the funnel, as data and as a table."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.table import Table

from pipeline.run import STAGES, Manifest
from pipeline.run_folder import RunFolder


def funnel(folder: RunFolder) -> list[dict[str, Any]]:
    """For each stage begun: items in, done, rejected and failed, the reasons, and how many units have ended."""
    stages = []
    units = len(folder.units())
    for stage in STAGES:
        paths = folder.ledgers(stage)
        if not paths:
            continue
        total = folder.tally(stage)
        stages.append(
            {
                "stage": stage,
                "items": total.items,
                "done": total.done,
                "rejected": total.rejected,
                "failed": total.failed,
                "units": len(paths) if stage == "fetch" else units,
                "units_ended": total.ended,
                "reasons": {reason: count for reason, count in total.reasons.most_common() if count},
            }
        )
    return stages


def table(stages: list[dict[str, Any]]) -> Table:
    """The funnel for the terminal."""
    shown = Table(title="notebooks (fetch: data sets)")
    for column in ("stage", "in", "done", "rejected", "failed", "units"):
        shown.add_column(column, justify="left" if column == "stage" else "right")
    shown.add_column("why not")
    for row in stages:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in row["reasons"].items())
        counts = (f"{row[key]:,}" for key in ("items", "done", "rejected", "failed"))
        shown.add_row(row["stage"], *counts, f"{row['units_ended']}/{row['units']}", reasons)
    return shown


def manifest(folder: RunFolder) -> Manifest:
    """What the run was started with."""
    return msgspec.json.decode(folder.manifest.read_bytes(), type=Manifest)
