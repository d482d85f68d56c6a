"""Where notebooks come from: folders, zips, JSON lines, Parquet, the Hugging Face hub.

`find_units` cuts the input into units; `Source.read` gives the notebooks of one. Nothing is left out: a member that
can't be read comes as an item with the error in place of its bytes, to be rejected by name.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile, ZipFile, ZipInfo

import fsspec
import msgspec
import pyarrow.parquet as pq
import xxhash
from datatrove.data import Document, Media, MediaType
from datatrove.pipeline.readers.base import BaseReader
from isal import igzip_lib, isal_zlib

from pipeline.notebook import MAX_BYTES, NotebookError
from pipeline.run_folder import RunFolder, Unit

TEXT_COLUMNS = ("notebook", "text", "content")
"""Where a row of JSON lines or Parquet holds its notebook, as a string or an object; the first that is there."""

_FILES_A_UNIT = 64
_MOST_FILE_UNITS = 64
"""Each unit of loose files lists the whole folder, so there are never many; Kaggle's millions come in zips."""
_MEMBERS_A_UNIT = 4096
_MANIFEST = "manifest.jsonl"
_KAGGLE_MEMBER = re.compile(r"(?:^|/)(\d{4})/(\d{3})/(\d+)\.(?:ipynb|json)$")


class SourceError(ValueError):
    """An input that can't be read as a whole."""


def find_units(inputs: str) -> list[Unit]:
    """The units of an input.

    Args:
        inputs: a folder (notebooks, zips, JSON lines, Parquet, at any depth), one such file, or a
            `hf://datasets/OWNER/NAME[@REVISION][/GLOB]`.

    Raises:
        SourceError: there is nothing there.
    """
    if inputs.startswith("hf://"):
        units = _hub_units(inputs)
    else:
        root = Path(inputs).resolve()
        if not root.exists():
            raise SourceError(f"{inputs} does not exist; expected a folder, a file or hf://datasets/OWNER/NAME")
        units = _file_units(root) if root.is_file() else _folder_units(root)
    if not units:
        raise SourceError(
            f"no notebooks in {inputs}: expected *.ipynb, *.zip, *.jsonl, *.jsonl.gz, *.jsonl.zst or *.parquet"
        )
    doubled = [name for name, count in Counter(unit.name for unit in units).items() if count > 1]
    if doubled:
        raise SourceError(f"two units have the name {doubled[0]}; rename one of the files")
    return sorted(units, key=lambda unit: unit.name)


def kernel_version(name: str) -> int | None:
    """The KernelVersions.Id in a member's name of Meta Kaggle Code's layout, `0132/087/132087938.ipynb`."""
    match = _KAGGLE_MEMBER.search(name)
    return int(match[3]) if match else None


class NotebookReader(BaseReader):  # type: ignore[misc]
    """The notebooks of this rank's units as datatrove documents: the bytes in `media`, an error in the metadata."""

    name = "notebooks"

    def __init__(self, folder: RunFolder, max_bytes: int = MAX_BYTES) -> None:
        super().__init__()
        self.run_folder, self.max_bytes = folder, max_bytes

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents of every `world_size`-th unit."""
        for unit in self.run_folder.units()[rank::world_size]:
            yield from self.read(unit)

    def read(self, unit: Unit, wanted: set[str] | None = None) -> Iterator[Document]:
        """The documents of one unit, or those of it whose ids are wanted (others are skipped unread where they can)."""
        pairs: Iterator[tuple[str, bytes | NotebookError, dict[str, Any]]]
        if unit.kind == "zip":
            pairs = _zip_members(unit, wanted, self.max_bytes)
        elif unit.kind == "files":
            pairs = _loose_files(unit, wanted, self.max_bytes)
        else:
            pairs = _table_rows(unit, wanted, self.max_bytes)
        for name, content, extra in pairs:
            if isinstance(content, NotebookError):
                yield Document("", name, metadata={**extra, "error": content})
            else:
                media = Media(name, MediaType.DOCUMENT, unit.source, media_bytes=content, length=len(content))
                yield Document("", name, media=[media], metadata=extra)


def _share(name: str, members: str) -> bool:
    """Whether a name belongs to `hash:INDEX/COUNT` or `top:FOLDER`."""
    if members.startswith("top:"):
        return name.split("/", 1)[0] == members[4:]
    index, count = map(int, members[5:].split("/"))
    return zlib.crc32(name.encode()) % count == index


def _shares(count: int, a_unit: int) -> int:
    """A power of two, so that a somewhat larger input is cut the same."""
    return max(1, 1 << max(0, (count - 1) // a_unit).bit_length())


def _folder_units(root: Path) -> list[Unit]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not _hidden(path.relative_to(root)))
    units = [unit for path in files if path.suffix != ".ipynb" for unit in _file_units(path, root)]
    return units + _loose_units(root, [path for path in files if path.suffix == ".ipynb"])


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _loose_units(root: Path, files: list[Path]) -> list[Unit]:
    count = min(_shares(len(files), _FILES_A_UNIT), _MOST_FILE_UNITS)
    shares: dict[int, list[str]] = {}
    described = root / _MANIFEST
    manifest = f"{described.stat().st_size} {described.stat().st_mtime_ns}" if described.is_file() else ""
    for path in files:
        name, state = path.relative_to(root).as_posix(), path.stat()
        index = zlib.crc32(name.encode()) % count
        shares.setdefault(index, []).append(f"{name} {state.st_size} {state.st_mtime_ns}")
    return [
        Unit(
            name=f"files-{index:04d}of{count:04d}",
            source=str(root),
            kind="files",
            members=f"hash:{index}/{count}",
            items=len(listed),
            fingerprint=_digest(manifest, *sorted(listed)),
        )
        for index, listed in shares.items()
    ]


def _file_units(path: Path, root: Path | None = None) -> list[Unit]:
    name = path.relative_to(root or path.parent).as_posix()
    safe = re.sub(r"[^\w-]+", "_", name)
    state = path.stat()
    fingerprint = _digest(name, str(state.st_size), str(state.st_mtime_ns))
    if path.suffix == ".zip":
        return _zip_units(path, safe)
    if path.suffix == ".ipynb":
        return [Unit(name=safe, source=str(path), kind="files", items=1, fingerprint=fingerprint)]
    if path.suffix == ".parquet":
        rows = pq.ParquetFile(path).metadata.num_rows
        return [Unit(name=safe, source=str(path), kind="parquet", items=rows, fingerprint=fingerprint)]
    if name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")) and path.name != _MANIFEST:
        return [Unit(name=safe, source=str(path), kind="jsonl", fingerprint=fingerprint)]
    return []


def _zip_units(path: Path, safe: str) -> list[Unit]:
    """A unit for each top folder in Meta Kaggle Code's layout; else shares by the hash of the names."""
    try:
        with ZipFile(path) as archive:
            infos = _notebook_infos(archive)
    except (BadZipFile, OSError) as error:
        raise SourceError(f"{path}: {error}; download it again or move it out of the input") from None
    kaggle = bool(infos) and all(re.match(r"\d{4}/", info.filename) for info in infos)
    count = _shares(len(infos), _MEMBERS_A_UNIT)
    groups: dict[str, list[ZipInfo]] = {}
    for info in infos:
        share = f"hash:{zlib.crc32(info.filename.encode()) % count}/{count}"
        groups.setdefault(f"top:{info.filename[:4]}" if kaggle else share, []).append(info)
    return [
        Unit(
            name=f"{safe}-{re.sub(r'[^0-9]+', '_', members.split(':')[1])}",
            source=str(path),
            kind="zip",
            members=members,
            items=len(group),
            fingerprint=_digest(*(f"{info.filename} {info.CRC} {info.file_size}" for info in group)),
        )
        for members, group in groups.items()
    ]


def _notebook_infos(archive: ZipFile) -> list[ZipInfo]:
    return [info for info in archive.infolist() if info.filename.endswith(".ipynb") and not info.is_dir()]


def _zip_members(
    unit: Unit, wanted: set[str] | None, max_bytes: int
) -> Iterator[tuple[str, bytes | NotebookError, dict[str, Any]]]:
    """Inflated by isal, 1.6 times as fast as the standard library; the zip's directory is read by the latter."""
    stem = Path(unit.source).name
    seen: Counter[str] = Counter()
    with ZipFile(unit.source) as archive, Path(unit.source).open("rb") as file:
        for info in _notebook_infos(archive):
            if not _share(info.filename, unit.members):
                continue
            seen[info.filename] += 1  # a zip may hold a name twice; both are items
            again = f"#{seen[info.filename]}" if seen[info.filename] > 1 else ""
            name = f"{stem}!{info.filename}{again}"
            if wanted is not None and name not in wanted:
                continue
            extra = {"kernel_version": kernel_version(info.filename)}
            try:
                yield name, _inflate(file, info, max_bytes), extra
            except NotebookError as error:
                yield name, error, extra


_LOCAL_HEADER = 30


def _inflate(file: Any, info: ZipInfo, max_bytes: int) -> bytes:
    if info.file_size > max_bytes:
        raise NotebookError("too_large", f"{info.file_size:,} bytes, {max_bytes:,} are the most")
    if info.flag_bits & 1:
        raise NotebookError("bad_zip_member", "encrypted")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER)
    if header[:4] != b"PK\3\4":
        raise NotebookError("bad_zip_member", "no local header where the directory says")
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
    packed = file.read(info.compress_size)
    if info.compress_type == 0:
        content: bytes = packed
    elif info.compress_type == 8:
        stream = isal_zlib.decompressobj(wbits=-15)
        try:
            content = stream.decompress(packed, max_bytes + 1)
        except igzip_lib.IsalError as error:  # type: ignore[misc]  # the stub annotates where it should define
            raise NotebookError("bad_zip_member", str(error)) from None
        if len(content) > max_bytes:  # more than the directory said: a bomb
            raise NotebookError("too_large", f"inflates to more than the {max_bytes:,} bytes allowed")
    else:
        raise NotebookError("bad_zip_member", f"compression method {info.compress_type} is not known")
    if isal_zlib.crc32(content) != info.CRC:
        raise NotebookError("bad_zip_member", "the checksum does not fit")
    return content


def _loose_files(
    unit: Unit, wanted: set[str] | None, max_bytes: int
) -> Iterator[tuple[str, bytes | NotebookError, dict[str, Any]]]:
    root = Path(unit.source)
    if root.is_file():
        files, root = [root], root.parent
    else:
        files = sorted(path for path in root.rglob("*.ipynb") if not _hidden(path.relative_to(root)))
    described = _manifest(root)
    for path in files:
        name = path.relative_to(root).as_posix()
        if (unit.members and not _share(name, unit.members)) or (wanted is not None and name not in wanted):
            continue
        if not path.is_file():
            continue
        extra = {"kernel_version": kernel_version(name), **described.get(name, {})}
        if path.stat().st_size > max_bytes:
            yield name, NotebookError("too_large", f"{path.stat().st_size:,} bytes, {max_bytes:,} are the most"), extra
        else:
            yield name, path.read_bytes(), extra


def _manifest(root: Path) -> dict[str, dict[str, Any]]:
    """`manifest.jsonl` beside the notebooks may say of a `file` its `repo`, its `path` there and its `license`."""
    path = root / _MANIFEST
    if not path.is_file():
        return {}
    rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines() if line.strip()]
    return {row["file"]: {key: row.get(key) for key in ("repo", "path", "license")} for row in rows if "file" in row}


def _table_rows(
    unit: Unit, wanted: set[str] | None, max_bytes: int
) -> Iterator[tuple[str, bytes | NotebookError, dict[str, Any]]]:
    stem = PurePosixPath(unit.source).name
    rows = _jsonl_rows(unit.source) if unit.kind == "jsonl" else _parquet_rows(unit.source)
    for number, row in enumerate(rows):
        name = f"{stem}!{number}"
        if wanted is not None and name not in wanted:
            continue
        if isinstance(row, NotebookError):
            yield name, row, {}
            continue
        column = next((column for column in TEXT_COLUMNS if row.get(column) is not None), None)
        extra = {"kernel_version": kernel_version(str(row.get("id", ""))), "path": row.get("path")}
        if column is None:
            yield name, NotebookError("no_notebook_column", f"{sorted(row)[:8]}: expected one of {TEXT_COLUMNS}"), extra
            continue
        value = row[column]
        if isinstance(value, str):
            content = value.encode("utf-8", "surrogatepass")
        else:
            content = value if isinstance(value, bytes) else msgspec.json.encode(value)
        large = len(content) > max_bytes
        yield name, (NotebookError("too_large", f"{len(content):,} bytes") if large else content), extra


def _jsonl_rows(source: str) -> Iterator[dict[str, Any] | NotebookError]:
    compression = {".gz": "gzip", ".zst": "zstd"}.get(PurePosixPath(source).suffix)
    with fsspec.open(source, "rb", compression=compression) as file:
        for line in file:
            try:
                row = msgspec.json.decode(line)
                yield (
                    row if isinstance(row, dict) else NotebookError("bad_row", f"a {type(row).__name__}, not an object")
                )
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                yield NotebookError("bad_row", str(error))


def _parquet_rows(source: str) -> Iterator[dict[str, Any]]:
    with fsspec.open(source, "rb") as file:
        parquet = pq.ParquetFile(file)
        columns = [name for name in (*TEXT_COLUMNS, "id", "path") if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(batch_size=64, columns=columns):
            yield from batch.to_pylist()


def _hub_units(inputs: str) -> list[Unit]:
    """The Parquet and JSON-lines files of a hub data set, pinned by their ETags."""
    filesystem, path = fsspec.core.url_to_fs(inputs)
    pattern = path if any(letter in path for letter in "*?[") else f"{path}/**"
    found = filesystem.glob(pattern, detail=True)
    units = []
    for file, info in sorted(found.items()):
        kind = "parquet" if file.endswith(".parquet") else "jsonl" if ".jsonl" in file else ""
        if kind:
            mark = str(info.get("blob_id") or info.get("etag") or info.get("size"))
            source = f"hf://{file}"
            units.append(
                Unit(name=re.sub(r"[^\w-]+", "_", file), source=source, kind=kind, fingerprint=_digest(source, mark))
            )
    return units


def _digest(*texts: str) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(texts).encode("utf-8", "surrogateescape"))
