"""Stage 5a, where data sets are not given: those that the remaining notebooks were run with, each fetched once."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import xxhash
from datatrove.pipeline.base import PipelineStep

from pipeline import decisions
from pipeline.kaggle import FetchSettings, Refused, fetch
from pipeline.metakaggle import KernelTable
from pipeline.parts import read_rows, write_table
from pipeline.run_folder import RunFolder, Unit
from pipeline.stage import Item, Rejected, Row, Stage
from pipeline.stages.data import source_ref

LIST_SCHEMA = pa.schema([("ref", pa.string()), ("version", pa.int64()), ("notebooks", pa.int64())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("notebooks", pa.int64()),
        ("folder", pa.string()),
        ("licence", pa.string()),
        ("version", pa.int64()),
        ("bytes", pa.int64()),
    ]
)


class WorkList(PipelineStep):  # type: ignore[misc]
    """The data sets that the remaining notebooks use, each with its version, the most used first; one task."""

    type = "notebooks"
    name = "fetch-list"

    def __init__(self, folder: RunFolder, kernels: KernelTable) -> None:
        super().__init__()
        self.run_folder, self.kernels = folder, kernels

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write `fetch.parquet`, unless it is there."""
        folder, units = self.run_folder, self.run_folder.units()
        mark = decisions.basis(folder, "rules", units, self.kernels.digest)
        stamp, path = folder.root / "fetch.mark", folder.root / "fetch.parquet"
        if stamp.exists() and stamp.read_text() == mark:
            return
        uses: dict[tuple[str, int | None], int] = {}
        for row in read_rows(folder.all_parts("rules"), ["kernel_version"]):
            if row["kernel_version"] is not None:
                for source in self.kernels.sources(row["kernel_version"]):
                    ref = source_ref(source)
                    uses[ref.name, ref.version] = uses.get((ref.name, ref.version), 0) + 1
        wanted = sorted(uses.items(), key=lambda item: (-item[1], item[0][0], item[0][1] or 0))
        rows = [{"ref": ref, "version": version, "notebooks": count} for (ref, version), count in wanted]
        write_table(path, pa.Table.from_pylist(rows, schema=LIST_SCHEMA))
        stamp.write_text(mark)


class Fetch(Stage):
    """Downloads data sets: one item each, committed one by one, tried again by later runs if they fail."""

    name = "fetch"
    version = 1
    schema = SCHEMA
    batch_items = 1
    takes_over = True

    def __init__(self, folder: RunFolder, settings: FetchSettings) -> None:
        super().__init__(folder)
        self.settings = settings

    def config(self) -> Any:
        """The policy."""
        return {"licences": self.settings.licences, "max_bytes": self.settings.max_bytes}

    def units(self) -> list[Unit]:
        """Shares of the work list."""
        count = self.settings.shares
        return [Unit(name=f"share-{i:03d}of{count:03d}", source="", kind="fetch", members=str(i)) for i in range(count)]

    def _rows(self, unit: Unit) -> list[Row]:
        rows = read_rows([self.run_folder.root / "fetch.parquet"])
        return [row for row in rows if zlib.crc32(row["ref"].encode()) % self.settings.shares == int(unit.members)]

    def basis(self, unit: Unit) -> str:
        """The share of the work list."""
        return xxhash.xxh3_128_hexdigest(msgspec.json.encode(self._rows(unit)))

    def items(self, unit: Unit) -> Iterator[Item]:
        """The data sets; the key is the version."""
        for row in self._rows(unit):
            yield Item(row["ref"], str(row["version"] or ""), row)

    def decide(self, item: Item) -> Row | Rejected:
        """Ask, then download."""
        row = item.payload
        try:
            got = fetch(row["ref"], row["version"], self.run_folder.root / "datasets", self.settings)
        except Refused as error:
            return Rejected(error.reason, error.detail)
        return {"id": item.id, "key": item.key, "notebooks": row["notebooks"], **got}
