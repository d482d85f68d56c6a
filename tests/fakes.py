"""One interpreter that misbehaves on demand, for what a real kernel does only by accident."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from jupyter_env.interpreters import BranchError, CellResult, InfrastructureError


def result(text: str = "ok", **fields: object) -> CellResult:
    """A cell's result; `alive` follows the status unless it is given."""
    status = fields.pop("status", "ok")
    given = {"duration_s": 0.0, "outputs": [], "alive": status not in ("kernel_died", "infrastructure_error"), **fields}
    return CellResult(status=status, text=text, **given)  # type: ignore[arg-type]


class FakeInterpreter:
    """Answers each cell with what `answers` says and remembers what it was asked.

    Args:
        answers: a result for every cell, or a function from the code to one.
        refuses_to_start: the start raises InfrastructureError with this text.
        simulated: see `Interpreter`.
    """

    def __init__(
        self,
        answers: CellResult | Callable[[str], CellResult] | None = None,
        refuses_to_start: str | None = None,
        simulated: bool = False,
    ) -> None:
        self.simulated = simulated
        self.files: dict[str, Path] | None = None
        self.cells: list[str] = []
        self.timeouts_s: list[float] = []
        self.closings = 0
        self._answers = answers or result()
        self._refuses_to_start = refuses_to_start

    async def start(self, files: Mapping[str, Path]) -> None:
        if self._refuses_to_start is not None:
            raise InfrastructureError(self._refuses_to_start)
        self.files = dict(files)

    async def run_cell(self, code: str, timeout_s: float) -> CellResult:
        assert self.files is not None and not self.closings, "a cell for an interpreter that is not running"
        self.cells.append(code)
        self.timeouts_s.append(timeout_s)
        return self._answers(code) if callable(self._answers) else self._answers

    async def branch(self) -> FakeInterpreter:
        raise BranchError("fakes are not branched")

    async def interrupt(self) -> None:
        pass

    async def close(self) -> None:
        self.closings += 1


class FakeFactory:
    """A `make_interpreter` that hands out the given interpreters in turn and keeps those it gave."""

    def __init__(self, *interpreters: FakeInterpreter) -> None:
        self._waiting = list(interpreters)
        self.made: list[FakeInterpreter] = []

    def __call__(self) -> FakeInterpreter:
        self.made.append(self._waiting.pop(0) if self._waiting else FakeInterpreter())
        return self.made[-1]
