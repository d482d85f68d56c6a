"""What the model sees of a cell's outputs: one rendering, with one shortening, in training and at inference."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable
from typing import Any

import msgspec

from jupyter_env.chat import neutral


class OutputLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a cell's output the model sees."""

    max_lines: int = 60
    """A pandas frame shows at most 60 rows by default."""
    max_line_chars: int = 1_000
    max_chars: int = 8_000
    """About 2,500 tokens: 25 turns fit into 64k with room to think."""

    def __post_init__(self) -> None:
        if self.max_lines < 4 or self.max_line_chars < 40 or self.max_chars < 200:
            raise ValueError(f"the least limits are 4 lines, 40 characters a line and 200 in all, got {self}")


_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_UNPRINTED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def render_outputs(outputs: Iterable[dict[str, Any]], limits: OutputLimits = OutputLimits()) -> str:  # noqa: B008
    """The text of nbformat outputs: streams and results in order, images as `[image/png 640x480]`, errors last.

    Head and tail are kept where it is too long, with "N of M lines shown" between; the line of an exception is
    always kept.
    """
    body: list[str] = []
    error: dict[str, Any] | None = None
    stream = ""
    for output in outputs:
        kind = output.get("output_type")
        if kind == "stream":
            stream += _joined(output.get("text", ""))
            continue
        body.append(stream)
        stream = ""
        if kind != "error":
            body.append(_data_text(output.get("data", {})))
            continue
        if error is not None:  # code can show any number of them; the last one ended the cell
            body.append(_error_text(error, limits))
        error = output
    body.append(stream)
    rest = "\n".join(part.rstrip("\n") for part in map(_clean, body) if part.strip("\n"))
    ending = _error_text(error, limits) if error is not None else ""
    room = max(limits.max_chars - len(ending), limits.max_chars // 4)
    return neutral("\n".join(part for part in (_shorten(rest, limits, room), ending) if part))


def shorten(text: str, limits: OutputLimits) -> str:
    """The text within the limits: long lines cut, then head and tail with what was left out said between them."""
    return _shorten(text, limits, limits.max_chars)


def _shorten(text: str, limits: OutputLimits, max_chars: int) -> str:
    lines = text.split("\n")
    # The last two lines are never left out, so that half of the room is the most that one may take.
    longest = min(limits.max_line_chars, max_chars if len(lines) == 1 else max_chars // 2)
    count = len(lines)
    if count > limits.max_lines:
        middle = limits.max_lines * 3 // 5
        lines[middle : middle - limits.max_lines] = []
    else:
        middle = max(1, count * 3 // 5)
    head, tail = ([_cut_line(line, longest) for line in part] for part in (lines[:middle], lines[middle:]))
    # Lines leave from the middle until the characters fit too.
    head_chars, tail_chars = (sum(len(line) + 1 for line in part) for part in (head, tail))
    room = max_chars if count <= limits.max_lines and head_chars + tail_chars - 1 <= max_chars else max_chars - 60
    while head_chars + tail_chars - 1 > room and len(head) + len(tail) > 2:
        if len(tail) == 1 or (head_chars > 1.5 * tail_chars and len(head) > 1):
            head_chars -= len(head.pop()) + 1
        else:
            tail_chars -= len(tail.pop(0)) + 1
    shown = len(head) + len(tail)
    note = [] if shown == count else [f"... [{shown} of {count} lines shown] ..."]
    return "\n".join([*head, *note, *tail])


def _cut_line(line: str, limit: int) -> str:
    if len(line) <= limit:
        return line
    keep_head = limit * 3 // 5
    return f"{line[:keep_head]} ... [{limit:,} of {len(line):,} characters shown] ... {line[keep_head - limit :]}"


def _error_text(error: dict[str, Any], limits: OutputLimits) -> str:
    """The traceback within half of the limits, then the exception within a quarter; its first line is always there."""
    name, value = _clean(_joined(error.get("ename", "Error"))), _clean(_joined(error.get("evalue", "")))
    headline = f"{name}: {value}".rstrip() if value.strip() else name
    frames = _clean("\n".join(map(_joined, error.get("traceback", [])))).rstrip()
    # It ends with the same words, and where there is no value, with the name and a colon.
    frames = frames.removesuffix(":").removesuffix(headline).rstrip()
    parts = [_shorten(frames, limits, limits.max_chars // 2), _shorten(headline, limits, limits.max_chars // 4)]
    return "\n".join(part for part in parts if part)


def _data_text(data: dict[str, Any]) -> str:
    images = [kind for kind in data if kind.startswith("image/")]
    if images:
        return "\n".join(f"[{kind}{_image_size(kind, data[kind])}]" for kind in images)
    if "text/plain" in data:
        return _joined(data["text/plain"])
    return "\n".join(f"[{kind}]" for kind in data)


def _image_size(kind: str, content: Any) -> str:
    """` 640x480` from a PNG's header; nothing for other kinds."""
    if kind != "image/png" or not isinstance(content, str):
        return ""
    try:
        header = base64.b64decode(content[:64])
    except (binascii.Error, ValueError):
        return ""
    if len(header) < 24 or not header.startswith(b"\x89PNG"):
        return ""
    width, height = struct.unpack(">II", header[16:24])
    return f" {width}x{height}"


def _joined(text: Any) -> str:
    """Text, which nbformat may hold in pieces; code can also display what is no text, shown here as `str` has it."""
    if isinstance(text, list):
        return "".join(map(str, text))
    return text if isinstance(text, str) else str(text)


def _clean(text: str) -> str:
    """Without terminal codes; a line that was overwritten with a carriage return shows its last state."""
    text = _ANSI.sub("", text)
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n"))
    text = _UNPRINTED.sub("\ufffd", text)
    return text.encode("utf-8", "replace").decode("utf-8")
