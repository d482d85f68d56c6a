"""Stage 3a: MinHash signatures of skeleton lines, in datatrove's file format."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import rensa
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig

from pipeline import ledger
from pipeline.matching import LineSets, MatchSettings
from pipeline.parts import read_rows, write_aside
from pipeline.run_folder import RunFolder
from pipeline.skeleton import LINES_VERSION, line_hashes

_ROWS_A_BATCH = 1000


def minhash_config(settings: MatchSettings) -> MinhashConfig:
    """The same settings for datatrove's own blocks."""
    return MinhashConfig(
        num_buckets=settings.buckets,
        hashes_per_bucket=settings.hashes_per_bucket,
        seed=settings.seed,
        hash_config=HashConfig(precision=32),
    )


def record_type(config: MinhashConfig) -> np.dtype[Any]:
    """A record of a signature file: the hashes of a bucket, then the document's number."""
    fields = [(f"h{i}", "<u4") for i in range(config.hashes_per_bucket)]
    return np.dtype([*fields, ("document", "<u4")])


class NotebookSignature(MinhashDedupSignature):  # type: ignore[misc]
    """datatrove's first MinHash step with skeleton lines for word n-grams, hashed in bulk by rensa.

    The signature files are datatrove's: `bucket_BBB/NNNNN.minhash.sig`, sorted, where NNNNN is the unit's number.
    Beside them lie the line hashes themselves, 32 bits each, for verification (`lines/NNNNN.u32`, `starts/NNNNN.npy`).
    """

    name = "near-signatures"

    def __init__(self, folder: RunFolder, settings: MatchSettings) -> None:
        # The parent's constructor loads a word tokenizer (spaCy for English), which lines have no use for.
        PipelineStep.__init__(self)
        self.run_folder, self.settings, self.config = folder, settings, minhash_config(settings)

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """The signatures of every `world_size`-th unit, unless they are there."""
        out = self.run_folder.folder("signatures")
        for number, unit in list(enumerate(self.run_folder.units()))[rank::world_size]:
            basis = ledger.digest(self.run_folder.ledger("exact", unit.name))
            if basis is None:
                raise ledger.LedgerError(f"stage exact has not finished unit {unit.name}; run it again")
            mark = msgspec.json.encode([basis, LINES_VERSION, self.settings])
            stamp = out / f"{number:05d}.mark"
            if stamp.exists() and stamp.read_bytes() == mark:
                continue
            with self.track_time("unit"):
                rows = read_rows(self.run_folder.parts("exact", unit.name), ["code"])
                self.write(out, number, (row["code"] for row in rows))
            write_aside(stamp, mark)

    def write(self, out: Path, number: int, codes: Iterable[list[str]]) -> None:
        """The signature and line files of one unit."""
        config, kind = self.config, record_type(self.config)
        buckets: list[list[np.ndarray]] = [[] for _ in range(config.num_buckets)]
        hashes: list[np.ndarray] = []
        lengths: list[int] = []
        for lines in _batches(map(line_hashes, codes)):
            first = len(lengths)
            full = [index for index, found in enumerate(lines) if len(found)]
            hashes += [(found >> np.uint64(32)).astype(np.uint32) for found in lines]
            lengths += map(len, lines)
            if full:
                digests = self._digests([lines[index] for index in full])
                documents = np.array(full, dtype=np.uint32) + np.uint32(first)
                for bucket, part in zip(buckets, np.split(digests, config.num_buckets, axis=1), strict=True):
                    records = np.empty(len(full), dtype=kind)
                    for column in range(config.hashes_per_bucket):
                        records[f"h{column}"] = part[:, column]
                    records["document"] = documents
                    bucket.append(records)
        for index, records_of in enumerate(buckets):
            records = np.concatenate(records_of) if records_of else np.empty(0, dtype=kind)
            records.sort(order=kind.names)
            _save(out / f"bucket_{index:03d}" / f"{number:05d}.minhash.sig", records.tobytes())
        flat = np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint32)
        _save(out / "lines" / f"{number:05d}.u32", flat.tobytes())
        _save_array(out / "starts" / f"{number:05d}.npy", np.r_[0, np.cumsum(lengths, dtype=np.int64)].astype(np.int64))
        self.stat_update("documents", value=len(lengths))

    def _digests(self, lines: list[np.ndarray]) -> np.ndarray:
        offsets = np.zeros(len(lines) + 1, dtype=np.uint64)
        offsets[1:] = np.cumsum([len(found) for found in lines])
        permutations = self.config.num_buckets * self.config.hashes_per_bucket
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            np.concatenate(lines), offsets, permutations, self.config.seed
        )
        return np.array(matrix.to_rows(), dtype=np.uint32)


def load_lines(out: Path, units: int) -> LineSets:
    """The line sets of all units, one after the other in one file that is mapped, not read: 4 GB at 10 million.

    Raises:
        LedgerError: a file is shorter than it was written.
    """
    path = out / "lines.u32"
    files = [out / "lines" / f"{number:05d}.u32" for number in range(units)]
    newest = max((file.stat().st_mtime_ns for file in files), default=0)
    if not path.exists() or path.stat().st_mtime_ns <= newest:
        aside = out / f"lines.{os.getpid()}.tmp"  # never written in place: another process may have it mapped
        with aside.open("wb") as joined:
            for file in files:
                with file.open("rb") as part:
                    shutil.copyfileobj(part, joined)
        aside.replace(path)
    starts = [np.load(out / "starts" / f"{number:05d}.npy") for number in range(units)]
    offsets = np.cumsum([0, *(begin[-1] for begin in starts)])
    if path.stat().st_size != 4 * offsets[-1]:
        raise ledger.LedgerError(f"the line files in {out} are not whole; remove {out} and run again")
    all_starts = [begin[:-1] + offset for begin, offset in zip(starts, offsets, strict=False)]
    empty = path.stat().st_size == 0
    hashes = np.empty(0, dtype=np.uint32) if empty else np.memmap(path, dtype=np.uint32, mode="r")
    return LineSets(hashes, np.concatenate([*all_starts, offsets[-1:]]).astype(np.int64))


def _batches(lines: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    while batch := list(islice(lines, _ROWS_A_BATCH)):
        yield batch


def _save(path: Path, content: bytes) -> None:
    """Whole or not there. Not synced, of which a unit has 34: what a power cut shortens is found when it is counted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_bytes(content)
    aside.replace(path)


def _save_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    with aside.open("wb") as file:
        np.save(file, array)
    aside.replace(path)
