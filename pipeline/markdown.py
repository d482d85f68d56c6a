"""A notebook as the text a model reads: cells with their numbers, outputs shortened as in the environment.

A notebook can't fake a cell: a line of it that looks like one of our headings is escaped, and a fence is always longer
than any within.
"""

from __future__ import annotations

import re

from jupyter_env.chat import neutral
from jupyter_env.interpreters.output import OutputLimits, render_outputs
from pipeline.notebook import FullNotebook, joined

_HEADING = re.compile(r"(?m)^(\s*)\[(?=cell \d+ )")
_DATA_URI = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]{64,}")
_TICKS = re.compile(r"`{3,}")


def render_notebook(notebook: FullNotebook, limits: OutputLimits = OutputLimits()) -> str:  # noqa: B008
    """Headings `[cell 3 code]`, `[cell 3 output]`, `[cell 4 markdown]`; blank cells and raw cells are left out."""
    blocks: list[str] = []
    for number, cell in enumerate(notebook.cells, start=1):
        source = joined(cell.source).strip("\n")
        if cell.cell_type == "markdown" and source.strip():
            blocks.append(f"[cell {number} markdown]\n{_escaped(_DATA_URI.sub('[image]', neutral(source)))}")
        elif cell.cell_type == "code" and (source.strip() or cell.outputs):
            blocks.append(f"[cell {number} code]\n{_fenced(neutral(source), 'python')}")
            output = render_outputs(cell.outputs, limits)
            if output:
                blocks.append(f"[cell {number} output]\n{_fenced(output)}")
    return "\n\n".join(blocks) + "\n"


def _escaped(text: str) -> str:
    return _HEADING.sub(r"\1\\[", text) if "[cell " in text else text


def _fenced(text: str, language: str = "") -> str:
    fence = "`" * max((len(run) + 1 for run in _TICKS.findall(text)), default=3) if "```" in text else "```"
    return f"{fence}{language}\n{_escaped(text)}\n{fence}"
