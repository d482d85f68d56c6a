"""Stage 1: files to rows. A row holds the code and what is needed to choose; the few that are kept are read again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import xxhash

from pipeline.metakaggle import KernelTable
from pipeline.notebook import MAX_BYTES, Notebook, NotebookError, parse
from pipeline.run_folder import RunFolder, Unit
from pipeline.skeleton import exact_key
from pipeline.sources import NotebookReader
from pipeline.stage import Item, Rejected, Row, Stage

MARKDOWN_SAMPLE_CHARS = 4000
"""Of the markdown so much is kept for the rules to tell its language by."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("unit", pa.string()),
        ("kernel_version", pa.int64()),
        ("votes", pa.int64()),
        ("forked_from", pa.int64()),
        ("title", pa.string()),
        ("repo", pa.string()),
        ("path", pa.string()),
        ("license", pa.string()),
        ("bytes", pa.int64()),
        ("nbformat", pa.int16()),
        ("language", pa.string()),
        ("python_version", pa.string()),
        ("code", pa.list_(pa.string())),
        ("code_key", pa.binary(16)),
        ("markdown_cells", pa.int32()),
        ("markdown_sample", pa.string()),
        ("cells_with_output", pa.int32()),
        ("errors", pa.int32()),
    ]
)


class Read(Stage):
    """Parses each notebook; rejects what is none, with the reason.

    Args:
        kernels: the table of Meta Kaggle's metadata, where there is one.
        max_bytes: larger notebooks are rejected unread.
    """

    name = "read"
    version = 1
    schema = SCHEMA

    def __init__(self, folder: RunFolder, kernels: KernelTable | None = None, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(folder)
        self.kernels, self.max_bytes = kernels, max_bytes
        self.reader = NotebookReader(folder, max_bytes)

    def config(self) -> Any:
        """What of the settings the rows depend on."""
        return {"max_bytes": self.max_bytes, "metadata": self.kernels.digest if self.kernels else None}

    def basis(self, unit: Unit) -> str:
        """The state of the files."""
        return f"{unit.fingerprint} {unit.limit}"

    def items(self, unit: Unit) -> Iterator[Item]:
        """The files; the key is the hash of the bytes."""
        documents = self.reader.read(unit)
        for document in islice(documents, unit.limit) if unit.limit >= 0 else documents:
            raw = document.media[0].media_bytes if document.media else b""
            yield Item(document.id, xxhash.xxh3_128_hexdigest(raw), (unit.name, raw, document.metadata))

    def decide(self, item: Item) -> Row | Rejected:
        """Parse."""
        unit, raw, about = item.payload
        error = about.pop("error", None)
        try:
            if error is not None:
                raise error
            notebook = parse(raw)
        except NotebookError as error:
            return Rejected(error.reason, error.detail)
        return {
            "id": item.id,
            "key": item.key,
            "unit": unit,
            "bytes": len(raw),
            **self._about(about),
            **_columns(notebook),
        }

    def _about(self, about: dict[str, Any]) -> dict[str, Any]:
        version = about.get("kernel_version")
        known = self.kernels.find(version) if self.kernels and version is not None else None
        return {**about, **(known or {})}


def _columns(notebook: Notebook) -> dict[str, Any]:
    code, markdown = notebook.code, notebook.markdown
    outputs = [cell.outputs for cell in notebook.cells if cell.outputs]
    return {
        "nbformat": min(notebook.nbformat, 99),
        "language": notebook.language,
        "python_version": notebook.python_version,
        "code": code,
        "code_key": exact_key(code),
        "markdown_cells": len(markdown),
        "markdown_sample": "\n".join(markdown)[:MARKDOWN_SAMPLE_CHARS],
        "cells_with_output": len(outputs),
        "errors": sum(any(output.output_type == "error" for output in cell) for cell in outputs),
    }
