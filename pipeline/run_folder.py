"""Where a run keeps what: its manifest, units, ledgers, parts and decisions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pipeline import ledger
from pipeline.ledger import Tally
from pipeline.parts import read_rows


class Unit(msgspec.Struct, frozen=True):
    """A share of the input that one task works through at a time."""

    name: str
    """A file name; the same through all stages."""
    source: str
    """The file or folder, absolute, or `hf://...`."""
    kind: str
    """`files`, `zip`, `jsonl` or `parquet`."""
    members: str = ""
    """Which part of the source: `top:0132` a top folder of a zip, `hash:3/16` a sixteenth by the hash of the name."""
    items: int = -1
    """How many notebooks it holds; -1 where only reading tells."""
    fingerprint: str = ""
    """Changes when the input does."""
    limit: int = -1
    """Read no more than so many; -1 for all."""


class RunFolder(msgspec.Struct, frozen=True):
    """The folder of one run."""

    root: Path

    @property
    def manifest(self) -> Path:
        """What the run was started with."""
        return self.root / "run.json"

    @property
    def units_file(self) -> Path:
        """The units of the input."""
        return self.root / "units.jsonl"

    def units(self) -> list[Unit]:
        """The units of the input, in the order of their names."""
        return [_unit_decoder.decode(line) for line in self.units_file.read_bytes().splitlines()]

    def ledger(self, stage: str, unit: str) -> Path:
        """The ledger of a stage's unit."""
        return self.root / "ledger" / stage / f"{unit}.jsonl"

    def ledgers(self, stage: str) -> list[Path]:
        """All ledgers of a stage."""
        return sorted((self.root / "ledger" / stage).glob("*.jsonl"))

    def parts_folder(self, stage: str) -> Path:
        """The folder of a stage's rows, a Parquet data set."""
        return self.root / "data" / stage

    def parts(self, stage: str, unit: str) -> list[Path]:
        """The committed part files of a stage's unit, in order."""
        folder = self.parts_folder(stage)
        return [folder / name for name in ledger.committed_parts(self.ledger(stage, unit))]

    def all_parts(self, stage: str) -> Iterator[Path]:
        """The committed part files of a stage."""
        folder = self.parts_folder(stage)
        for path in self.ledgers(stage):
            yield from (folder / name for name in ledger.committed_parts(path))

    def tally(self, stage: str) -> Tally:
        """The counts of a stage."""
        total = Tally()
        for path in self.ledgers(stage):
            total.add(ledger.tally(path))
        return total

    def journal(self, stage: str, unit: str) -> Path:
        """The replies of models to a stage's unit."""
        return self.root / "calls" / stage / f"{unit}.jsonl"

    def journals(self, stage: str) -> list[Path]:
        """All journals of a stage."""
        return sorted((self.root / "calls" / stage).glob("*.jsonl"))

    def given(self, stage: str, expands: str) -> int:
        """How many items a stage hands to the next: its rows, or what their column says."""
        if not expands:
            return self.tally(stage).done
        return sum(row[expands] for row in read_rows(self.all_parts(stage), [expands]))

    def folder(self, name: str) -> Path:
        """A folder for what a stage keeps beside its rows, made if need be."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path


_unit_decoder = msgspec.json.Decoder(Unit)
