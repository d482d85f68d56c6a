"""Where tasks come from: generated questions over real tables, and benchmarks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_env.task import TaskPool

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


def cache_folder() -> Path:
    """The user's cache folder of this package (`XDG_CACHE_HOME`, else `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jupyter-env"
