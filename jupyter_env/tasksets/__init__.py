"""Where tasks come from: generated questions over real tables, and benchmarks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_env.task import TaskError, TaskPool

if TYPE_CHECKING:
    from jupyter_env.tasksets.procedural import Execute


def procedural_pool(n: int, *, seed: int, tables: str | Path | None, execute: Execute | None) -> TaskPool:
    """See `TaskPool.procedural`."""
    from jupyter_env.interpreters.executor import kernel_executor
    from jupyter_env.tasksets.procedural import generate
    from jupyter_env.tasksets.tables import embedded_tables, folder_tables

    root = Path(tables) if tables is not None else cache_folder() / "tables"
    found = folder_tables(root) if tables is not None else embedded_tables(root)
    if execute is not None:
        return TaskPool(generate(found, root, n, seed, execute), root)
    with kernel_executor({table.path: root / table.path for table in found}) as run:
        return TaskPool(generate(found, root, n, seed, run), root)


BENCHMARKS = ("dabstep", "dabstep-dev", "dabench")
"""Benchmarks by the names that the command line takes."""


def load_benchmark(name: str, folder: str | Path | None = None) -> TaskPool:
    """A benchmark by name, from a folder that holds its files, or from its hub.

    Raises:
        TaskError: there is none of this name, or its files are not there.
    """
    from jupyter_env.tasksets.dabench import load as load_dabench
    from jupyter_env.tasksets.dabstep import load as load_dabstep

    match name:
        case "dabstep":
            return load_dabstep(folder)
        case "dabstep-dev":
            return load_dabstep(folder, split="dev")
        case "dabench":
            return load_dabench(folder)
        case _:
            raise TaskError(f"the benchmarks are {', '.join(BENCHMARKS)}, not {name!r}")


def cache_folder() -> Path:
    """The user's cache folder of this package (`XDG_CACHE_HOME`, else `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jupyter-env"
