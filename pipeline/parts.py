"""Files that are either whole or not there: written aside, synced, renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_aside(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one, the new one or none, never a piece."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    put(aside, path)


def put(aside: Path, path: Path) -> None:
    """Give a synced file its name, and sync the name."""
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_table(path: Path, table: pa.Table) -> str:
    """Write a table as Parquet with zstd.

    Returns:
        The file's sha256.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=1)
    content = sink.getvalue()
    write_aside(path, memoryview(content))  # type: ignore[arg-type]
    return hashlib.sha256(content).hexdigest()


def read_rows(paths: Iterable[Path], columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of Parquet files, in order."""
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=512, columns=columns):
            yield from batch.to_pylist()


def read_table(paths: Iterable[Path], columns: list[str]) -> pa.Table | None:
    """Some columns of Parquet files as one table; none where there is no file."""
    tables = [pq.ParquetFile(path).read(columns=columns) for path in paths]  # `pq.read_table` would load pandas
    return pa.concat_tables(tables) if tables else None
