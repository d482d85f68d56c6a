"""The dataset card: what is in it, where every item that is not was lost, and who made it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from jupyter_env.task import Task
from pipeline.funnel import calls, calls_line, funnel, levels
from pipeline.parts import read_rows
from pipeline.prompts import prompt
from pipeline.run_folder import RunFolder


def card(
    folder: RunFolder, models: dict[str, dict[str, Any]], counts: dict[str, int], *, groups: int, held_groups: int
) -> str:
    """The README of the export.

    Args:
        models: by role, what of each replies depend on.
        counts: traces by split; empty where there are none.
        groups: of questions that share data or a notebook.
        held_groups: of them, held out.
    """
    tasks = [msgspec.json.decode(row["task"], type=Task) for row in read_rows(folder.all_parts("unique"), ["task"])]
    traces = list(read_rows(folder.all_parts("curate"), ["correct", "simulated", "tokens"])) if counts else []
    parts = [
        _front_matter(counts),
        "# Questions about data, with their notebooks\n",
        f"{len(tasks):,} questions, written by a language model from notebooks and checked; {len(traces):,} traces of "
        f"an agent that works on them, {sum(row['correct'] for row in traces):,} of them right by the strict verifier, "
        f"{sum(row['simulated'] for row in traces):,} with outputs that a model invented.\n",
        f"Train and held out share no table, data set, notebook or fork family: {groups:,} groups, {held_groups:,} "
        "held out.\n",
        "## The funnel\n\n" + _table(_funnel_rows(folder)),
        "## Questions by level\n\n" + _table(levels(folder)),
        "## Models and prompts\n\n" + _made_by(folder, models),
        "## Licences of the notebooks\n\n" + _counted(Counter(task.licence or "unknown" for task in tasks)),
    ]
    return "\n".join(parts)


def _front_matter(counts: dict[str, int]) -> str:
    lines = ["---", "configs:"]
    for variant in ("thinking", "non_thinking") if counts else ():
        lines += [f"- config_name: {variant}", "  data_files:"]
        for split, count in counts.items():
            if count:
                lines += [f"  - split: {split}", f"    path: sft/{variant}/{split}.parquet"]
    return "\n".join([*lines, "---\n"]) if counts else ""


def _funnel_rows(folder: RunFolder) -> list[dict[str, Any]]:
    return [
        {
            **{key: row[key] for key in ("stage", "items", "done", "rejected", "failed")},
            "why not": ", ".join(f"{reason} {count:,}" for reason, count in row["reasons"].items()),
        }
        for row in funnel(folder)
    ]


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "None.\n"
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[name]).replace("|", "\\|") for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _made_by(folder: RunFolder, models: dict[str, dict[str, Any]]) -> str:
    lines = [f"- {role}: `{msgspec.json.encode(model).decode()}`" for role, model in models.items()]
    lines += [f"- prompt `{prompt(name).identity}`" for name in ("system", "notebook", "score", "ask", "read", "blind")]
    lines += [f"- {calls_line(stage, used)}" for stage, used in calls(folder).items()]
    return "\n".join(lines) + "\n"


def _counted(counts: Counter[str]) -> str:
    return "".join(f"- {name}: {count:,}\n" for name, count in counts.most_common())
