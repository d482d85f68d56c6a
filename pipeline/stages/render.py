"""Stage 6: the few that are left, read again from where they lie, as the text that models and people read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import xxhash

from jupyter_env.interpreters.output import OutputLimits
from pipeline.markdown import render_notebook
from pipeline.notebook import MAX_BYTES, parse_full
from pipeline.parts import read_rows
from pipeline.run_folder import RunFolder, Unit
from pipeline.sources import NotebookReader
from pipeline.stage import Item, Rejected, Row, Stage
from pipeline.stages.data import SCHEMA as DATA_SCHEMA

SCHEMA = pa.schema([*DATA_SCHEMA, ("text", pa.string())])


class Render(Stage):
    """Adds the notebook's text, outputs shortened by the function that the environment uses."""

    name = "render"
    version = 1
    upstream = "data"
    schema = SCHEMA
    takes_over = True
    batch_items = 500

    def __init__(self, folder: RunFolder, limits: OutputLimits = OutputLimits(), max_bytes: int = MAX_BYTES) -> None:  # noqa: B008
        super().__init__(folder)
        self.limits = limits
        self.reader = NotebookReader(folder, max_bytes)

    def config(self) -> Any:
        """The limits of outputs."""
        return msgspec.to_builtins(self.limits)

    def items(self, unit: Unit) -> Iterator[Item]:
        """The rows with their files' bytes, in the order of the source; a file that is gone comes without."""
        rows = {row["id"]: row for row in read_rows(self.run_folder.parts(self.upstream, unit.name))}
        if not rows:
            return
        for document in self.reader.read(unit, wanted=set(rows)):
            row = rows.pop(document.id)
            yield Item(row["id"], row["key"], (row, document.media[0].media_bytes if document.media else None))
        for row in rows.values():
            yield Item(row["id"], row["key"], (row, None))

    def decide(self, item: Item) -> Row | Rejected:
        """Render.

        Raises:
            ValueError: the file is gone or has changed since it was read.
        """
        row, raw = item.payload
        if raw is None or xxhash.xxh3_128_hexdigest(raw) != item.key:
            raise ValueError("the notebook is gone or has changed since it was read; run again with --repartition")
        return {**row, "text": render_notebook(parse_full(raw), self.limits)}
