"""An episode's record as a Jupyter notebook that opens in Jupyter and runs again from top to bottom."""

from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from jupyter_env.action import Message
from jupyter_env.episode import CellRecord, EpisodeRecord

_CANNOT_RERUN = ("timeout", "kernel_died")
_MAX_NAME = 150
"""Characters of an id in a file's name: most file systems take 255 bytes."""


def to_notebook(record: EpisodeRecord) -> NotebookNode:
    """The question, every step with its outputs as they were, and the answer with its verdict.

    Cells that raised carry the tag `raises-exception`, so that nbclient goes on after them as the agent did; cells
    that had to be interrupted or killed carry `skip-execution`. Data is expected at `data/` beside the notebook.
    """
    by_turn = {cell.turn: cell for cell in record.cells}
    cells = [new_markdown_cell(_opening(record))]
    turn = 0
    for message in record.messages[2:]:
        if message["role"] != "assistant":
            continue
        turn += 1
        if words := _words(message):
            cells.append(new_markdown_cell(words))
        if turn in by_turn:
            cells.append(_code_cell(by_turn[turn], 1 + sum(cell.cell_type == "code" for cell in cells)))
    cells.append(new_markdown_cell(_closing(record)))
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"  # nbformat's own are random, and equal episodes give equal files
    notebook: NotebookNode = new_notebook(cells=cells, metadata=_metadata(record))
    nbformat.validate(notebook)
    return notebook


def write_notebook(record: EpisodeRecord, path: Path) -> None:
    """Write the record as an `.ipynb` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(to_notebook(record), str(path))


def notebook_name(episode_id: str) -> str:
    """The file name for an episode's notebook; no two ids share one.

    An id that can't be a file's name as it is, or is too long for one, has a hash of the whole id at its end.
    """
    name = re.sub(r"[^A-Za-z0-9._#-]", "_", episode_id)
    if name != episode_id or len(name) > _MAX_NAME:
        name = f"{name[:_MAX_NAME]}-{hashlib.sha256(episode_id.encode()).hexdigest()[:12]}"
    return f"{name}.ipynb"


def _metadata(record: EpisodeRecord) -> dict[str, Any]:
    about = {"episode": record.id, "task": record.task_id, "stop_reason": record.stop_reason, "reward": record.reward}
    about["provenance"] = record.provenance
    return {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
        "jupyter_env": about,
    }


def _opening(record: EpisodeRecord) -> str:
    lines = ["# Question", record.question]
    if record.guidelines:
        lines.append(f"**Guidelines:** {record.guidelines}")
    if record.files:
        lines.append("**Files:** " + ", ".join(f"`data/{name}`" for name in record.files))
    if record.provenance == "simulated":
        lines.append("**Simulated:** a language model invented the outputs of these cells; no code ran.")
    return "\n\n".join(lines)


def _words(message: Message) -> str:
    """What the agent said with its call: its content, else the call's comment."""
    content = message.get("content")
    comments = [str(call["function"]["arguments"].get("comment", "")) for call in message.get("tool_calls") or []]
    return content.strip() if isinstance(content, str) and content.strip() else "\n\n".join(filter(None, comments))


def _code_cell(cell: CellRecord, count: int) -> NotebookNode:
    outputs = copy.deepcopy(cell.outputs)
    for output in outputs:
        if output["output_type"] == "execute_result":
            output["execution_count"] = count
    metadata: dict[str, Any] = {"jupyter_env": {"status": cell.status, "turn": cell.turn}}
    if cell.status in _CANNOT_RERUN:
        metadata["tags"] = ["skip-execution"]
    elif cell.status != "ok":
        metadata["tags"] = ["raises-exception"]
    nodes = [nbformat.from_dict(output) for output in outputs]
    code_cell: NotebookNode = new_code_cell(cell.code, execution_count=count, outputs=nodes, metadata=metadata)
    return code_cell


def _closing(record: EpisodeRecord) -> str:
    if record.answer is None:
        return f"**No answer** ({record.stop_reason or 'still running'})." + (
            f" {record.error}" if record.error else ""
        )
    if record.verdict is None:  # nobody here knows the answer
        return f"**Answer:** {record.answer}"
    outcome = "correct" if record.verdict.correct else "wrong"
    return f"**Answer:** {record.answer}\n\n**Verdict:** {outcome}\n\n{record.verdict.reason}"
