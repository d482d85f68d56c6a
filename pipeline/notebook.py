"""A notebook file's bytes to its cells: typed and lazy where it is sound, mended where it is not, else a reason."""

from __future__ import annotations

import codecs
import json
from typing import Any

import msgspec

MAX_BYTES = 100_000_000
"""Larger notebooks are rejected unread. The largest of 576 real ones had 12 MB."""


class NotebookError(ValueError):
    """Not a notebook that can be read.

    Attributes:
        reason: one of a few fixed words, to be counted.
        detail: what was found and where.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Output(msgspec.Struct):
    """Of an output only what says whether it is one; its text and pictures are skipped unread."""

    output_type: str = ""


class Cell(msgspec.Struct):
    """A cell of nbformat 4."""

    cell_type: str = ""
    source: str | list[str] = ""
    outputs: list[Output] = []


class FullCell(msgspec.Struct):
    """A cell with its outputs whole, for rendering."""

    cell_type: str = ""
    source: str | list[str] = ""
    outputs: list[dict[str, Any]] = []


class Named(msgspec.Struct):
    """`language_info` or `kernelspec`, of which versions of Jupyter filled different fields."""

    name: str = ""
    language: str = ""
    version: str = ""


class Metadata(msgspec.Struct):
    """What a notebook says of its language."""

    language_info: Named = msgspec.field(default_factory=Named)
    kernelspec: Named = msgspec.field(default_factory=Named)


class _File(msgspec.Struct):
    nbformat: int = 0
    cells: list[Cell] | None = None
    metadata: Metadata = msgspec.field(default_factory=Metadata)


class _FullFile(msgspec.Struct):
    nbformat: int = 0
    cells: list[FullCell] | None = None
    metadata: Metadata = msgspec.field(default_factory=Metadata)


class Notebook(msgspec.Struct, kw_only=True):
    """The cells of a notebook, upgraded to nbformat 4."""

    cells: list[Cell]
    metadata: Metadata
    nbformat: int
    """As the file had it."""

    @property
    def code(self) -> list[str]:
        """The sources of the code cells."""
        return [joined(cell.source) for cell in self.cells if cell.cell_type == "code"]

    @property
    def markdown(self) -> list[str]:
        """The sources of the markdown cells."""
        return [joined(cell.source) for cell in self.cells if cell.cell_type == "markdown"]

    @property
    def language(self) -> str:
        """The language that the notebook names, lower case; empty where it names none.

        `language_info` is written by the kernel that ran, `kernelspec` by whoever chose it: the first wins.
        """
        info, kernel = self.metadata.language_info, self.metadata.kernelspec
        named = (info.name or kernel.language or kernel.name).lower()
        return {"ir": "r", "python3": "python", "python2": "python", "ipython": "python"}.get(named, named)

    @property
    def python_version(self) -> str:
        """As `2.7.10`, where it is said."""
        return self.metadata.language_info.version or ("2" if self.metadata.kernelspec.name == "python2" else "")


class FullNotebook(msgspec.Struct, kw_only=True):
    """As `Notebook`, with whole outputs."""

    cells: list[FullCell]
    metadata: Metadata
    nbformat: int


def parse(raw: bytes) -> Notebook:
    """The cells of a notebook file; what its outputs hold is skipped.

    Raises:
        NotebookError: no notebook, or not one that can be mended.
    """
    try:
        file = _decoder.decode(raw.removeprefix(codecs.BOM_UTF8))
    except (msgspec.DecodeError, UnicodeDecodeError):
        file = _File()
    if file.nbformat < 4 or file.cells is None:
        file = msgspec.convert(_mended(raw), _File)
    return Notebook(cells=file.cells or [], metadata=file.metadata, nbformat=file.nbformat)


def parse_full(raw: bytes) -> FullNotebook:
    """As `parse`, with whole outputs, for rendering.

    Raises:
        NotebookError: no notebook, or not one that can be mended.
    """
    try:
        file = _full_decoder.decode(_without_pictures(raw))
    except (msgspec.DecodeError, UnicodeDecodeError):
        file = _FullFile()
    if file.nbformat < 4 or file.cells is None:
        file = msgspec.convert(_mended(raw), _FullFile)
    return FullNotebook(cells=file.cells or [], metadata=file.metadata, nbformat=file.nbformat)


_PICTURE = b'"image/'
_PICTURE_HEAD = 64
"""Of a picture's base64 so much is kept: enough for its size in pixels."""


def _without_pictures(raw: bytes) -> bytes:
    """The JSON with the pictures cut short, which are nine tenths of its bytes: `find` passes over them 5 times as fast
    as any parser.

    An unescaped `"image/` is always a key (or a whole string) of the JSON itself: within a string the quote is escaped.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    begin = raw.find(_PICTURE)
    if begin < 0:
        return raw
    pieces, done = [], 0
    while begin >= 0:
        colon = raw.find(b'"', begin + len(_PICTURE)) + 1
        value = raw.find(b'"', colon, colon + 8) + 1
        if value and raw[colon : value - 1].strip() == b":":
            end = raw.find(b'"', value)
            if end - value > _PICTURE_HEAD and raw.find(b"\\", value, value + _PICTURE_HEAD) < 0:
                if raw[end - 1] == 92:  # an escaped quote: no base64
                    end = begin + len(_PICTURE)
                else:
                    pieces.append(raw[done : value + _PICTURE_HEAD])
                    done = end
            begin = raw.find(_PICTURE, max(end, value))
        else:
            begin = raw.find(_PICTURE, begin + len(_PICTURE))
    pieces.append(raw[done:])
    return b"".join(pieces)


def joined(source: str | list[str]) -> str:
    """A source, which the format may hold in pieces."""
    return source if isinstance(source, str) else "".join(source)


_decoder = msgspec.json.Decoder(_File)
_full_decoder = msgspec.json.Decoder(_FullFile)


def _mended(raw: bytes) -> dict[str, Any]:
    """The slow path: any encoding, any version, cells brought into the form that the types above expect."""
    content = _load(raw)
    if not isinstance(content, dict):
        raise NotebookError("not_a_notebook", f"the file holds a {type(content).__name__} where an object is expected")
    if not ("cells" in content or "worksheets" in content or "nbformat" in content):
        raise NotebookError("not_a_notebook", f"no cells among {sorted(map(str, content))[:8]}")
    worksheets = content.get("worksheets")
    if isinstance(worksheets, list) and not isinstance(content.get("cells"), list):
        found = [sheet.get("cells") for sheet in worksheets if isinstance(sheet, dict)]
        cells: list[Any] = [cell for sheet in found if isinstance(sheet, list) for cell in sheet]
    else:
        listed = content.get("cells")
        if listed is None:
            raise NotebookError("no_cells", "the notebook has no list of cells")
        if not isinstance(listed, list):
            raise NotebookError("not_a_notebook", f"cells is a {type(listed).__name__} where a list is expected")
        cells = listed
    metadata, stated = content.get("metadata"), content.get("nbformat")
    joint = "\n" if stated == 2 else ""  # version 2 kept lines without their ends
    mended = [_mended_cell(cell, joint) for cell in cells if isinstance(cell, dict)]
    return {
        "nbformat": stated if isinstance(stated, int) else 0,
        "cells": mended,
        "metadata": _mended_metadata(metadata if isinstance(metadata, dict) else {}),
    }


_OLD_OUTPUTS = {"pyout": "execute_result", "pyerr": "error"}
_OLD_KINDS = {
    "text": "text/plain",
    "html": "text/html",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "svg": "image/svg+xml",
}


def _mended_cell(cell: dict[str, Any], joint: str) -> dict[str, Any]:
    """A cell of any version as one of version 4: `input` was `source`, headings were cells of their own."""
    kind = str(cell.get("cell_type", ""))
    source = _text(cell.get("source", cell.get("input", "")), joint)
    if kind == "heading":
        level = cell.get("level")
        source = "#" * (level if isinstance(level, int) and 0 < level < 7 else 1) + " " + source
        kind = "markdown"
    outputs = cell.get("outputs")
    kept = [_mended_output(o, joint) for o in outputs if isinstance(o, dict)] if isinstance(outputs, list) else []
    return {"cell_type": kind, "source": source, "outputs": kept}


def _mended_output(output: dict[str, Any], joint: str) -> dict[str, Any]:
    kind = str(output.get("output_type", ""))
    kind = _OLD_OUTPUTS.get(kind, kind)
    if kind in ("execute_result", "display_data") and not isinstance(output.get("data"), dict):
        data = {_OLD_KINDS[key]: _text(value, joint) for key, value in output.items() if key in _OLD_KINDS}
        return {"output_type": kind, "data": data}
    if kind == "stream":
        return {"output_type": kind, "text": _text(output.get("text", ""), joint)}
    traceback = output.get("traceback")
    if kind == "error" and not isinstance(traceback, list):
        return {**output, "output_type": kind, "traceback": [_text(traceback, joint)] if traceback else []}
    return {**output, "output_type": kind}


def _mended_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key in ("language_info", "kernelspec"):
        named = metadata.get(key)
        if isinstance(named, dict):
            found[key] = {field: value for field, value in named.items() if isinstance(value, str)}
    return found


def _text(value: Any, joint: str) -> str:
    if isinstance(value, list):
        return joint.join(piece for piece in value if isinstance(piece, str))
    return value if isinstance(value, str) else ""


def _load(raw: bytes) -> Any:
    """JSON in whatever encoding it came, with the NaN and the lone surrogates that Python's own writer lets through."""
    head = raw[:2048].lstrip(b"\xef\xbb\xbf").lstrip()
    if not head.strip(b"\0"):
        raise NotebookError("empty_file", f"{len(raw)} bytes, all blank" if raw else "0 bytes")
    if head.startswith(b"version https://git-lfs"):
        raise NotebookError("lfs_pointer", "a pointer of git LFS, not the file; fetch it with `git lfs pull`")
    text = _decoded(raw)
    if text.lstrip()[:1] == "<":
        raise NotebookError("html", "an HTML page, not a notebook")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated string")
        raise NotebookError("truncated_json" if cut else "invalid_json", str(error)) from None
    except RecursionError:
        raise NotebookError("invalid_json", "nested too deeply") from None
    return _without_surrogates(content) if "\\ud" in text or "\\uD" in text else content


def _decoded(raw: bytes) -> str:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if raw.startswith(mark):
            return raw.decode(encoding, "replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        if raw[1:2] == b"\0" or raw[:1] == b"\0":  # UTF-16 without a mark: JSON begins with an ASCII character
            return raw.decode("utf-16-le" if raw[1:2] == b"\0" else "utf-16-be", "replace")
        return raw.decode("cp1252", "replace")  # what Windows editors write


def _without_surrogates(content: Any) -> Any:
    """Half of a surrogate pair is no character and can't be written out again."""
    return json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
