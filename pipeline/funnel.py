"""What became of the notebooks: the funnel, as data and as a table."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from rich.table import Table

from pipeline.calls import usage_of
from pipeline.drafts import LEVELS, Candidate
from pipeline.ledger import DONE, FAILED, REJECTED, Tally, read_lines
from pipeline.order import CLASSES
from pipeline.parts import read_rows
from pipeline.run_folder import RunFolder


def funnel(folder: RunFolder) -> list[dict[str, Any]]:
    """For each stage begun: items in, done, rejected and failed, the reasons, how many units have ended, and whether
    the account adds up with the stage before."""
    stages: list[dict[str, Any]] = []
    units = len(folder.units())
    ended: set[str] = set()
    for stage in CLASSES:
        name, paths = stage.name, folder.ledgers(stage.name)
        if not paths:
            continue
        total = folder.tally(name)
        given = folder.given(stage.upstream, stage.expands) if stage.upstream in ended else None
        stages.append(
            {
                "stage": name,
                "items": total.items,
                "done": total.done,
                "rejected": total.rejected,
                "failed": total.failed,
                "units": len(paths) if name == "fetch" else units,
                "units_ended": total.ended,
                "reasons": {reason: count for reason, count in total.reasons.most_common() if count},
                "adds_up": _adds_up(total, units, given),
            }
        )
        if total.ended == units:
            ended.add(name)
    return stages


def _adds_up(total: Tally, units: int, given: int | None) -> bool | None:
    """Whether as many items have an outcome as the stage before let through; none while that can't be said."""
    return total.items == given if given is not None and total.ended == units else None


def calls(folder: RunFolder) -> dict[str, dict[str, int]]:
    """By stage, what its calls of models have used; a call that was paid twice is counted once."""
    found = {stage.name: folder.journals(stage.name) for stage in CLASSES}
    used = {name: usage_of(journals) for name, journals in found.items()}
    return {name: msgspec.structs.asdict(usage) for name, usage in used.items() if usage.requests}


def calls_line(stage: str, used: dict[str, int]) -> str:
    """The same for the terminal."""
    cached = f" ({used['cached_tokens'] / used['prompt_tokens']:.0%} from the cache)" if used["prompt_tokens"] else ""
    return (
        f"{stage}: {used['requests']:,} calls, {used['prompt_tokens']:,} prompt tokens{cached}, "
        f"{used['completion_tokens']:,} written, {used['retries']:,} sent again"
    )


def levels(folder: RunFolder) -> list[dict[str, Any]]:
    """For each level: how many questions were written, how many each check cost, how many are left and were solved."""
    level: dict[str, str] = {}
    for row in read_rows(folder.all_parts("ask"), ["id", "candidates"]):
        for number, encoded in enumerate(row["candidates"]):
            level[f"{row['id']}#q{number}"] = msgspec.json.decode(encoded, type=Candidate).level
    lost: dict[str, Counter[str]] = {name: Counter() for name in LEVELS}
    gone: set[str] = set()
    for stage in ("check", "unique"):
        for path in folder.ledgers(stage):
            states = {item.id: item for line in read_lines(path)[0] if line.commit for item in line.commit.items}
            for item in states.values():
                if item.state != DONE:
                    gone.add(item.id)
                    lost[level[item.id]][item.reason if item.state == REJECTED else FAILED] += 1
    solved: dict[str, list[bool]] = {}
    for row in read_rows(folder.all_parts("curate"), ["question_id", "correct"]):
        solved.setdefault(row["question_id"], []).append(row["correct"])
    reasons = [reason for reason, _ in sum(lost.values(), Counter[str]()).most_common()]
    return [
        {
            "level": name,
            "written": sum(one == name for one in level.values()),
            **{reason: lost[name][reason] for reason in reasons},
            "left": sum(one == name and asked not in gone for asked, one in level.items()),
            "with a trace": sum(level[asked] == name for asked in solved),
            "solved": sum(level[asked] == name and any(right) for asked, right in solved.items()),
        }
        for name in LEVELS
        if level
    ]


def levels_table(rows: list[dict[str, Any]]) -> Table:
    """The same for the terminal: a line a check, a column a level."""
    shown = Table(title="questions by level")
    shown.add_column("")
    for row in rows:
        shown.add_column(row["level"], justify="right")
    for key in [key for key in rows[0] if key != "level"] if rows else ():
        shown.add_row(key, *(f"{row[key]:,}" for row in rows))
    return shown


def table(stages: list[dict[str, Any]]) -> Table:
    """The funnel for the terminal."""
    shown = Table(title="notebooks (fetch: data sets; check, unique, traces: questions; curate: traces)")
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
