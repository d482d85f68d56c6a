"""What a stage that compares all rows with all decided, kept per unit until the rows are taken over or rejected."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline import ledger
from pipeline.parts import write_aside
from pipeline.run_folder import RunFolder, Unit


class Decision(msgspec.Struct, frozen=True):
    """Why a row goes."""

    reason: str
    of: str
    """The id of the row that is kept in its place."""
    similarity: float


class Index(msgspec.Struct):
    """What the decisions were worked out from."""

    basis: str
    units: dict[str, str]
    """For each unit a digest of its decisions: units that a new input did not touch are not done again."""


def basis(folder: RunFolder, stage: str, units: list[Unit], settings: object) -> str:
    """The digest of all that the decisions depend on.

    Raises:
        LedgerError: a unit of the stage has not ended.
    """
    digests = []
    for unit in units:
        found = ledger.digest(folder.ledger(stage, unit.name))
        if found is None:
            raise ledger.LedgerError(f"stage {stage} has not finished unit {unit.name}; run it again")
        digests.append(found)
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode([digests, settings]))


def current(path: Path) -> Index | None:
    """The index of a folder of decisions, if it was finished."""
    index = path / "index.json"
    return msgspec.json.decode(index.read_bytes(), type=Index) if index.exists() else None


def write(
    path: Path,
    mark: str,
    units: list[Unit],
    first_rows: np.ndarray,
    kept: np.ndarray,
    reasons: list[str],
    similarity: np.ndarray,
    ids: pa.ChunkedArray,
) -> None:
    """Write the decisions of all units.

    Args:
        first_rows: (units + 1) where each unit's rows begin in the arrays below.
        kept: (rows) the number of the row kept in this one's place; its own number where it stays.
        reasons: one for each row that goes, in order.
        similarity: (rows) to the kept row.
        ids: (rows) of the rows.
    """
    path.mkdir(parents=True, exist_ok=True)
    going = np.flatnonzero(kept != np.arange(len(kept)))
    table = pa.table(
        {
            "row": pa.array(going, pa.int64()),
            "reason": pa.array(reasons, pa.string()),
            "of": ids.take(pa.array(kept[going])) if len(going) else pa.array([], pa.string()),
            "similarity": pa.array(similarity[going], pa.float32()),
        }
    )
    digests = {}
    bounds = np.searchsorted(going, first_rows)
    for number, unit in enumerate(units):
        part = table.slice(bounds[number], bounds[number + 1] - bounds[number])
        part = part.set_column(0, "row", pa.array(going[bounds[number] : bounds[number + 1]] - first_rows[number]))
        sink = pa.BufferOutputStream()
        pq.write_table(part, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        digests[unit.name] = xxhash.xxh3_128_hexdigest(repr(part.to_pydict()).encode())
        write_aside(path / f"{unit.name}.parquet", content)
    write_aside(path / "index.json", msgspec.json.encode(Index(mark, digests)))


def read(path: Path, unit: Unit) -> dict[int, Decision]:
    """The decisions of a unit by row."""
    rows = pq.ParquetFile(path / f"{unit.name}.parquet").read().to_pylist()
    return {row["row"]: Decision(row["reason"], row["of"], row["similarity"]) for row in rows}
