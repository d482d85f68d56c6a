"""What became of the notebooks: the funnel, as data and as a table."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.table import Table

from pipeline.ledger import Tally
from pipeline.run import STAGES, Manifest
from pipeline.run_folder import RunFolder


def funnel(folder: RunFolder) -> list[dict[str, Any]]:
    """For each stage begun: items in, done, rejected and failed, the reasons, how many units have ended, and whether
    the account adds up with the stage before."""
    stages: list[dict[str, Any]] = []
    units = len(folder.units())
    given: int | None = None
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
                "adds_up": None if stage == "fetch" else _adds_up(total, units, given),
            }
        )
        if stage != "fetch":
            given = total.done if total.ended == units else None
    return stages


def _adds_up(total: Tally, units: int, given: int | None) -> bool | None:
    """Whether as many items have an outcome as the stage before let through; none while that can't be said."""
    return total.items == given if given is not None and total.ended == units else None


def table(stages: list[dict[str, Any]]) -> Table:
    """The funnel for the terminal."""
    shown = Table(title="notebooks (fetch: data sets)")
    for column in ("stage", "in", "done", "rejected", "failed", "units"):
        shown.add_column(column, justify="left" if column == "stage" else "right")
    shown.add_column("why not")
    for row in stages:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in row["reasons"].items())
        counts = (f"{row[key]:,}" for key in ("items", "done", "rejected", "failed"))
        if row["adds_up"] is False:
            reasons = f"[red]does not add up with the stage before[/red] {reasons}"
        shown.add_row(row["stage"], *counts, f"{row['units_ended']}/{row['units']}", reasons)
    return shown


def manifest(folder: RunFolder) -> Manifest:
    """What the run was started with."""
    return msgspec.json.decode(folder.manifest.read_bytes(), type=Manifest)
