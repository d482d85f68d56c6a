"""What becomes of tasks whose tables are missing: they are refused, skipped, or worked on in an invented world."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, get_args

from jupyter_env.chat import Model
from jupyter_env.episode import EpisodeRecord
from jupyter_env.interpreters import Interpreter, SimulatedInterpreter
from jupyter_env.task import Task, TaskError, TaskPool

MissingData = Literal["error", "skip", "simulate"]
"""A missing table is an error, its task is left out and counted, or a model invents the outputs."""

REFERENCE_KEY = "reference_notebook"
"""In a task's metadata: the text of the notebook that the task was made from, for the simulator alone."""


def check_choice(missing_data: MissingData, simulator: Model | None) -> None:
    """Raises ValueError unless there is such a choice, and a simulator exactly where it is needed."""
    if missing_data not in get_args(MissingData):
        raise ValueError(f'`missing_data` is "error", "skip" or "simulate", got {missing_data!r}')
    if (missing_data == "simulate") != (simulator is not None):
        raise ValueError('`missing_data="simulate"` and `simulator`, the model that invents the outputs, go together')


def reference_of(task: Task) -> str | None:
    """What a simulator is told of the task's data: the notebook it was made from, else its reference code."""
    notebook = task.metadata.get(REFERENCE_KEY)
    return notebook if isinstance(notebook, str) and notebook.strip() else task.reference_code


def workplace(
    task: Task, pool: TaskPool, make_kernel: Callable[[], Interpreter], simulator: Model | None = None
) -> tuple[dict[str, Path], Callable[[], Interpreter]]:
    """Where a task is worked on: its files by path below `data/`, and what makes the interpreter.

    With a simulator, a task of which any table is missing gets a `SimulatedInterpreter`; the paths of missing tables
    then lead nowhere.

    Raises:
        TaskDataError: a table is missing and there is no simulator, or one is not the one that the task was made for.
    """
    if simulator is not None and pool.missing(task):
        root = pool.data_root or Path()
        files = {file.path: root / file.path for file in task.files}
        return files, lambda: SimulatedInterpreter(simulator, reference_of(task))
    return {file.path: pool.file_path(file) for file in task.files}, make_kernel


def refuse_simulated(made: Iterable[EpisodeRecord | Task], purpose: str, allow: bool = False) -> None:
    """What must rest on real outputs (rewards to train on, gold answers) asks here first.

    Args:
        made: episodes, or tasks.
        purpose: what they are wanted for, for the message.
        allow: the user's `--allow-simulated`.

    Raises:
        TaskError: some are simulated, and that is not allowed.
    """
    if allow:
        return
    all_made = list(made)
    simulated = [each.id for each in all_made if each.provenance == "simulated"]
    if simulated:
        raise TaskError(
            f"{len(simulated)} of {len(all_made)} are simulated ({simulated[0]} is the first): a model invented their "
            f"outputs, which is nothing for {purpose}; leave them out, or --allow-simulated"
        )
