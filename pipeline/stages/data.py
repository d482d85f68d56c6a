"""Stage 5: each notebook with the files it reads, from its data sets in the versions it was run with."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import xxhash

from pipeline.catalog import Catalog, Ref
from pipeline.metakaggle import KernelTable
from pipeline.reads import UNKNOWN
from pipeline.run_folder import RunFolder, Unit
from pipeline.stage import Item, Rejected, Row, Stage
from pipeline.stages.rules import SCHEMA as RULES_SCHEMA

FILE = pa.struct(
    [
        ("read", pa.string()),
        ("dataset", pa.string()),
        ("file", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        *RULES_SCHEMA,
        ("datasets", pa.list_(pa.string())),
        ("files", pa.list_(FILE)),
        ("missing", pa.list_(pa.string())),
    ]
)


class Data(Stage):
    """Keeps the notebooks of which at least one file is here; the row says which are and which are not.

    Args:
        datasets: the folder of data sets.
        kernels: the table of Meta Kaggle's metadata, where there is one.
        keep_missing: let notebooks go on of which no file is here.
    """

    name = "data"
    version = 1
    upstream = "rules"
    schema = SCHEMA
    takes_over = True

    def __init__(
        self, folder: RunFolder, datasets: Path, kernels: KernelTable | None = None, *, keep_missing: bool = False
    ) -> None:
        super().__init__(folder)
        self.keep_missing = keep_missing
        self.catalog = Catalog(datasets, folder.root / "sha256")
        self.kernels = kernels

    def config(self) -> Any:
        """The metadata and the data sets that are here, with the times of their folders."""
        names = sorted(name for names in self.catalog.names().values() for name in names)
        times = [(self.catalog.folder / name).stat().st_mtime_ns for name in names]
        here = xxhash.xxh3_128_hexdigest(msgspec.json.encode([names, times]))
        kept = {"keep_missing": True} if self.keep_missing else {}
        return {"metadata": self.kernels.digest if self.kernels else None, "datasets": here, **kept}

    def units(self) -> list[Unit]:
        """As they were read."""
        return self.run_folder.units()

    def decide(self, item: Item) -> Row | Rejected:
        """Look each path up."""
        row: Row = item.payload
        refs = self.refs(row)
        found = {path: self.catalog.find(path, refs) for path in row["reads"]}
        files = [file for group in found.values() for file in group]
        if not files and not self.keep_missing:
            return self._why_none(row, refs)
        return {
            **row,
            "datasets": [_named(ref) for ref in refs],
            "files": [msgspec.structs.asdict(file) for file in files],
            "missing": [path for path, group in found.items() if not group],
        }

    def _why_none(self, row: Row, refs: list[Ref]) -> Rejected:
        if not refs:
            return Rejected("no_data_set_known", ", ".join(row["reads"][:3]))
        if not any(self.catalog.folder_of(ref) for ref in refs):
            return Rejected("data_set_not_here", ", ".join(_named(ref) for ref in refs[:5]))
        known = [path for path in row["reads"] if path != UNKNOWN]
        return Rejected("file_not_found" if known else "path_not_known", ", ".join(known[:3]))

    def refs(self, row: Row) -> list[Ref]:
        """All data sets and competitions of the kernel version, and the repository that the notebook lies in."""
        refs = []
        if self.kernels and row["kernel_version"] is not None:
            for source in self.kernels.sources(row["kernel_version"]):
                refs.append(source_ref(source))
        if row["repo"]:
            refs.append(Ref(row["repo"], base=posixpath.dirname(row["path"] or "")))
        return refs


def source_ref(source: dict[str, Any]) -> Ref:
    """The data set of a row of the metadata."""
    name = f"competitions/{source['ref']}" if source["kind"] == "competition" else source["ref"]
    return Ref(name, source["version"])


def _named(ref: Ref) -> str:
    return ref.name if ref.version is None else f"{ref.name}@{ref.version}"
