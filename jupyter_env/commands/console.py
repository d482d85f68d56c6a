"""What the commands share: where they print, their common options, and how a pool is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jupyter_env.task import TaskPool
from jupyter_env.tasksets import BENCHMARKS, load_benchmark

out = Console(emoji=False)  # a cell may print ":100:"
err = Console(stderr=True, emoji=False)

PoolFile = Annotated[
    str,
    typer.Argument(
        help=f"A pool: .jsonl, .parquet, a hub id such as owner/name, or a benchmark ({', '.join(BENCHMARKS)}).",
        metavar="POOL",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")]
Concurrency = Annotated[int | None, typer.Option(help="Kernels at a time. Default: twice the cores.", min=1)]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder of the tables. Default: `data` beside the pool; for a benchmark, its hub."),
]


def load_pool(source: str, data_root: Path | None = None) -> TaskPool:
    """A pool by file, hub id or benchmark name.

    Raises:
        TaskError: there is none.
    """
    if source in BENCHMARKS:
        return load_benchmark(source, data_root)
    return TaskPool.load(source, data_root)


def progress_of(noun: str) -> Progress:
    """A bar with elapsed time and ETA, on stderr."""
    counted = MofNCompleteColumn()
    remaining = TimeRemainingColumn()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        counted,
        TextColumn(noun),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        remaining,
        console=err,
    )


def print_json(data: Any) -> None:
    """Data as indented JSON on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(data), indent=2).decode() + "\n")
