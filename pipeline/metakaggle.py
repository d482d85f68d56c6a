"""Meta Kaggle's tables: votes, language and fork parent of a kernel version, and the data sets it was run with.

The CSV files change between dumps: columns are taken by name, extra ones are ignored, a missing one is an error that
names it. Data sets are joined on `DatasetVersions.Id` (`SourceDatasetVersionId` points there; the column
`DatasourceVersionId`, which looks alike, is another numbering), so that each comes with the version that was used.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import xxhash

from pipeline.parts import write_aside


class MetadataError(ValueError):
    """A table of Meta Kaggle that is missing or of another form."""


def prepare(folder: Path, out: Path) -> None:
    """Read the CSV files of a Meta Kaggle dump into two sorted tables, `kernels.parquet` and `sources.parquet`.

    Done once a run; again where the files have changed.

    Raises:
        MetadataError: a file or a column is missing.
    """
    mark = digest_of(folder)
    stamp = out / "metadata.digest"
    if stamp.exists() and stamp.read_text() == mark:
        return
    out.mkdir(parents=True, exist_ok=True)
    _write(_kernels(folder), out / "kernels.parquet")
    _write(_sources(folder), out / "sources.parquet")
    write_aside(stamp, mark.encode())


class KernelTable:
    """What the metadata says of kernel versions, by id.

    Args:
        folder: where `prepare` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digest = (folder / "metadata.digest").read_text()
        self._kernels: pa.Table | None = None
        self._sources: pa.Table | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the tables: each process opens its own."""
        return {"folder": self.folder, "digest": self.digest, "_kernels": None, "_sources": None}

    def find(self, version: int) -> dict[str, Any] | None:
        """Votes, fork parent, title and language's name of a kernel version; none where the dump has no such row."""
        if self._kernels is None:
            self._kernels = _opened(self.folder / "kernels.parquet")
        rows = _rows(self._kernels, version)
        if not rows:
            return None
        row = rows[0]
        language = {"language": _language(row["language"])} if row["language"] else {}
        return {"votes": row["votes"], "forked_from": row["forked_from"], "title": row["title"], **language}

    def sources(self, version: int) -> list[dict[str, Any]]:
        """All data sets and competitions of a kernel version: kind, ref, version, licence, size."""
        if self._sources is None:
            self._sources = _opened(self.folder / "sources.parquet")
        return _rows(self._sources, version)


def _opened(path: Path) -> pa.Table:
    return pq.ParquetFile(path, memory_map=True).read().combine_chunks()


def _rows(table: pa.Table, version: int) -> list[dict[str, Any]]:
    ids = table["kernel_version"].chunk(0).to_numpy() if table.num_rows else np.empty(0)
    first, after = np.searchsorted(ids, version, "left"), np.searchsorted(ids, version, "right")
    rows: list[dict[str, Any]] = table.slice(first, after - first).to_pylist()
    return rows


def _language(name: str) -> str:
    return {"ipython notebook": "python", "rmarkdown": "r"}.get(name.lower(), name.lower())


def _read(folder: Path, name: str, columns: dict[str, pa.DataType]) -> pa.Table:
    """Some columns of a CSV, cast; whole numbers may be written as floats, and the file may be empty."""
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise MetadataError(f"{path} does not exist; expected the CSV files of a Meta Kaggle dump in {folder}")
    if path.stat().st_size == 0:
        return pa.table({column: pa.array([], type=kind) for column, kind in columns.items()})
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = next(iter(pacsv.read_csv(pa.BufferReader(file.readline().encode())).schema.names for _ in (0,)))
    missing = [column for column in columns if column not in header]
    if missing:
        near = difflib.get_close_matches(missing[0], header, 1)
        raise MetadataError(
            f"{path} has no column {missing[0]!r}"
            + (f" (did it become {near[0]!r}?)" if near else "")
            + f"; its columns are {', '.join(header)}"
        )
    table = pacsv.read_csv(
        path,
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            include_columns=list(columns), column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True
        ),
    )
    return pa.table({column: _cast(table[column], kind) for column, kind in columns.items()})


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if not pa.types.is_integer(kind):
        return column.cast(kind)
    return pc.replace_substring_regex(column, r"\.0+$", "").cast(kind)


_INT, _TEXT = pa.int64(), pa.string()


def _kernels(folder: Path) -> pa.Table:
    versions = _read(
        folder,
        "KernelVersions",
        {"Id": _INT, "ScriptId": _INT, "ScriptLanguageId": _INT, "Title": _TEXT, "TotalVotes": _INT},
    )
    kernels = _read(folder, "Kernels", {"Id": _INT, "ForkParentKernelVersionId": _INT, "TotalVotes": _INT})
    languages = _read(folder, "KernelLanguages", {"Id": _INT, "Name": _TEXT})
    kernels = kernels.rename_columns(["ScriptId", "forked_from", "kernel_votes"])
    languages = languages.rename_columns(["ScriptLanguageId", "language"])
    table = versions.join(kernels, "ScriptId", join_type="left outer")
    table = table.join(languages, "ScriptLanguageId", join_type="left outer")
    votes = pc.max_element_wise(table["TotalVotes"], table["kernel_votes"])
    return pa.table(
        {
            "kernel_version": table["Id"],
            "votes": votes,
            "forked_from": table["forked_from"],
            "title": table["Title"],
            "language": table["language"],
        }
    ).sort_by("kernel_version")


def _sources(folder: Path) -> pa.Table:
    return pa.concat_tables([_dataset_sources(folder), _competition_sources(folder)]).sort_by(
        [("kernel_version", "ascending"), ("kind", "ascending"), ("ref", "ascending")]
    )


def _dataset_sources(folder: Path) -> pa.Table:
    used = _read(folder, "KernelVersionDatasetSources", {"KernelVersionId": _INT, "SourceDatasetVersionId": _INT})
    versions = _read(
        folder,
        "DatasetVersions",
        {
            "Id": _INT,
            "DatasetId": _INT,
            "VersionNumber": _INT,
            "Slug": _TEXT,
            "LicenseName": _TEXT,
            "TotalUncompressedBytes": _INT,
        },
    )
    datasets = _read(folder, "Datasets", {"Id": _INT, "OwnerUserId": _INT, "OwnerOrganizationId": _INT})
    users = _read(folder, "Users", {"Id": _INT, "UserName": _TEXT})
    teams = _read(folder, "Organizations", {"Id": _INT, "Slug": _TEXT})
    table = used.join(
        versions.rename_columns(["Version", *versions.column_names[1:]]), "SourceDatasetVersionId", "Version"
    )
    table = table.join(datasets.rename_columns(["DatasetId", "User", "Team"]), "DatasetId")
    table = table.join(users.rename_columns(["User", "UserName"]), "User")
    table = table.join(teams.rename_columns(["Team", "TeamSlug"]), "Team")
    owner = pc.coalesce(table["TeamSlug"], table["UserName"])
    ref = pc.binary_join_element_wise(owner, table["Slug"], "/")
    return pa.table(
        {
            "kernel_version": table["KernelVersionId"],
            "kind": pa.array(["dataset"] * table.num_rows, _TEXT),
            "ref": ref,
            "version": table["VersionNumber"],
            "licence": table["LicenseName"],
            "bytes": table["TotalUncompressedBytes"],
            "source_id": table["SourceDatasetVersionId"],
        }
    )


def _competition_sources(folder: Path) -> pa.Table:
    used = _read(folder, "KernelVersionCompetitionSources", {"KernelVersionId": _INT, "SourceCompetitionId": _INT})
    competitions = _read(folder, "Competitions", {"Id": _INT, "Slug": _TEXT})
    table = used.join(competitions.rename_columns(["SourceCompetitionId", "ref"]), "SourceCompetitionId")
    none = pa.nulls(table.num_rows, _INT)
    return pa.table(
        {
            "kernel_version": table["KernelVersionId"],
            "kind": pa.array(["competition"] * table.num_rows, _TEXT),
            "ref": table["ref"],
            "version": none,
            "licence": pa.nulls(table.num_rows, _TEXT),
            "bytes": none,
            "source_id": table["SourceCompetitionId"],
        }
    )


def _write(table: pa.Table, path: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_aside(path, memoryview(sink.getvalue()))  # type: ignore[arg-type]


def digest_of(folder: Path) -> str:
    """Changes when one of the CSV files does."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.csv"))]
    return xxhash.xxh3_128_hexdigest(repr(files).encode())
