"""How far a simulating model is to be believed: the same cells in a kernel and in the simulator, compared."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from jupyter_env.chat import Model
from jupyter_env.episode import EpisodeRecord
from jupyter_env.interpreters import CellResult, InfrastructureError, Interpreter, SimulatedInterpreter
from jupyter_env.missing import reference_of
from jupyter_env.statistics import wilson_interval
from jupyter_env.task import Task, TaskPool

KINDS = ("look", "compute", "figure", "silent", "error")
"""Of cells: they show a table, print what they computed, draw, say nothing, or fail in the kernel."""

_LOOKS = re.compile(r"\.(?:head|tail|info|describe|sample|columns|shape|dtypes|nunique|isna|isnull|memory_usage)\b")
_IMAGE = re.compile(r"\[image/\w+(?: \d+x\d+)?\]")
_REL_TOL = 1e-6
"""Of numbers: a last digit rounded otherwise is no disagreement."""


class ComparedCell(msgspec.Struct, frozen=True, kw_only=True):
    """One cell in both interpreters."""

    task_id: str
    kind: str
    code: str
    real_status: str
    real_text: str
    simulated_status: str
    """`infrastructure_error`: the simulator gave no usable reply; later cells of the task are not run."""
    simulated_text: str
    same_status: bool
    same_output: bool
    """The same status, and the same words and numbers; of an exception, its class and message."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How often the two agree."""

    kind: str
    cells: int
    same_status: int
    same_output: int
    no_reply: int
    """Counted as disagreement too."""

    @property
    def rate(self) -> float:
        """Share of cells with the same output; not a number without cells."""
        return self.same_output / self.cells if self.cells else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval; see `wilson_interval`. Too narrow, for cells of one task fail together."""
        return wilson_interval(self.same_output, self.cells)


def cells_of(task: Task) -> list[str]:
    """Cells for a task that nobody has worked on yet: a look at each CSV table, a mistake, its reference code."""
    paths = [file.path for file in task.files if file.path.endswith(".csv")]
    cells = [f"import pandas as pd\n\ntable = pd.read_csv({'data/' + path!r})\ntable.head()" for path in paths]
    if paths:
        cells += ["print(table.shape)\nprint(table.dtypes)", "table['no such column']"]
    return [*cells, *([task.reference_code] if task.reference_code else [])]


def cells_of_records(records: Iterable[EpisodeRecord]) -> dict[str, list[str]]:
    """The cells of each task's first episode that has any, by the task's id."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record.cells and record.provenance == "real":
            found.setdefault(record.task_id, [cell.code for cell in record.cells])
    return found


async def measure(
    pool: TaskPool,
    simulator: Model,
    make_kernel: Callable[[], Interpreter],
    cells: Mapping[str, Sequence[str]],
    *,
    with_reference: bool = True,
    concurrency: int = 4,
    timeout_s: float = 60.0,
    on_task: Callable[[], None] = lambda: None,
) -> list[ComparedCell]:
    """Run each task's cells in both interpreters.

    Args:
        cells: by the task's id; tasks without are left out.
        with_reference: give the simulator the task's reference, as when its data is missing.
        concurrency: tasks at a time.
        on_task: called after each, for progress.

    Raises:
        TaskDataError: a table is missing: there is nothing to compare with.
        InfrastructureError: a kernel does not start, or fails.
        ModelSetupError: the model will not answer any cell.
    """
    slots = asyncio.Semaphore(concurrency)

    async def of_task(task: Task) -> list[ComparedCell]:
        async with slots:
            simulated = SimulatedInterpreter(simulator, reference_of(task) if with_reference else None)
            compared = await _compare(task, pool, make_kernel(), simulated, cells[task.id], timeout_s)
            on_task()
            return compared

    tasks = [task for task in pool if cells.get(task.id)]
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(of_task(task)) for task in tasks]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [cell for each in running for cell in each.result()]


async def _compare(
    task: Task, pool: TaskPool, real: Interpreter, simulated: Interpreter, cells: Sequence[str], timeout_s: float
) -> list[ComparedCell]:
    files = {file.path: pool.file_path(file) for file in task.files}
    compared: list[ComparedCell] = []
    try:
        await real.start(files)
        await simulated.start(files)
        for code in cells:
            expected, got = await real.run_cell(code, timeout_s), await simulated.run_cell(code, timeout_s)
            if expected.status == "infrastructure_error":
                raise InfrastructureError(expected.text)
            compared.append(_compared(task, code, expected, got))
            if not expected.alive or not got.alive or got.status == "infrastructure_error":
                break
    finally:
        await real.close()
        await simulated.close()
    return compared


def _compared(task: Task, code: str, real: CellResult, simulated: CellResult) -> ComparedCell:
    same_status = real.status == simulated.status
    return ComparedCell(
        task_id=task.id,
        kind=kind_of(code, real),
        code=code,
        real_status=real.status,
        real_text=real.text,
        simulated_status=simulated.status,
        simulated_text=simulated.text,
        same_status=same_status,
        same_output=same_status and same_text(_essence(real), _essence(simulated)),
    )


def kind_of(code: str, real: CellResult) -> str:
    """One of `KINDS`, by what the kernel made of the cell."""
    if real.status != "ok":
        return "error"
    if not real.text:
        return "silent"
    if _IMAGE.search(real.text):
        return "figure"
    return "look" if _LOOKS.search(code) else "compute"


def _essence(result: CellResult) -> str:
    """What is compared: outputs without figures' sizes; of an exception its headline, since no traceback is alike."""
    error: dict[str, Any] | None = next((o for o in result.outputs if o.get("output_type") == "error"), None)
    if error is not None:
        return f"{error.get('ename')}: {error.get('evalue')}"
    return _IMAGE.sub("[image]", result.text)


def same_text(one: str, other: str) -> bool:
    """The same words in the same order; spaces and lines apart, numbers equal to six digits."""
    words, others = one.split(), other.split()
    return len(words) == len(others) and all(map(_same_word, words, others))


def _same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return math.isclose(float(one.strip(",()[]")), float(other.strip(",()[]")), rel_tol=_REL_TOL)
    except ValueError:
        return False


def agreements(cells: Sequence[ComparedCell]) -> list[Agreement]:
    """By kind, and over all."""
    return [
        Agreement(
            kind=kind,
            cells=len(of_kind),
            same_status=sum(cell.same_status for cell in of_kind),
            same_output=sum(cell.same_output for cell in of_kind),
            no_reply=sum(cell.simulated_status == "infrastructure_error" for cell in of_kind),
        )
        for kind in (*KINDS, "all")
        if (of_kind := [cell for cell in cells if kind in (cell.kind, "all")])
    ]
