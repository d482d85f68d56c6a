"""What an interpreter is: something that starts with tables, runs cells one after another, and is closed.

Statuses are one vocabulary from here to training metrics. A status other than `infrastructure_error` is the doing
of the code that was run; `infrastructure_error` is the machine's, and never counts against an agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

Status = Literal["ok", "code_error", "timeout", "out_of_memory", "kernel_died", "infrastructure_error"]


class InfrastructureError(Exception):
    """The machine failed, not the code: a kernel that does not start, a disk that is full, a server that is gone."""


class BranchError(Exception):
    """An interpreter that cannot be branched, or whose state cannot."""


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """One cell that was run."""

    status: Status
    outputs: list[dict[str, Any]]
    """In nbformat 4's form, whole up to the interpreter's cap, images included."""
    text: str
    """What the model sees of the outputs (`interpreters.output.render_outputs`)."""
    duration_s: float
    """Wall time from sending the code to its end."""
    alive: bool = True
    """Whether the next cell can run and finds this one's variables."""


class Interpreter(Protocol):
    """A stateful Python interpreter. Calls come one at a time, from one event loop."""

    simulated: bool
    """True if a model invents the outputs."""

    async def start(self, files: Mapping[str, Path]) -> None:
        """Make it ready, with each host file readable at `data/<key>` of the working folder.

        Raises:
            InfrastructureError: it cannot start within its time limit.
        """

    async def run_cell(self, code: str, timeout_s: float) -> CellResult:
        """Run one cell; at the limit it is interrupted, and killed if that does not help. Raises nothing."""

    async def interrupt(self) -> None:
        """Interrupt the running cell, as Ctrl-C does; nothing happens if none runs."""

    async def branch(self) -> Interpreter:
        """A started copy of it as it is between two cells, independent from here on.

        Raises:
            BranchError: this interpreter, or the state that the code has made, cannot be copied.
        """

    async def close(self) -> None:
        """Stop it and free everything it holds, whatever state it is in; a second call does nothing."""
