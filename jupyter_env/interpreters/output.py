"""What the model sees of a cell's outputs: one rendering, with one shortening, in training and at inference."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable, Sequence
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
    errors: list[str] = []
    stream = ""
    for output in outputs:
        kind = output.get("output_type")
        if kind == "stream":
            stream += _joined(output.get("text", ""))
            continue
        body.append(stream)
        stream = ""
        if kind == "error":
            errors.append(_error_text(output, limits))
        else:
            body.append(_data_text(output.get("data", {})))
    body.append(stream)
    error = "\n".join(errors)
    rest = "\n".join(part.rstrip("\n") for part in map(_clean, body) if part.strip("\n"))
    room = max(limits.max_chars - len(error), limits.max_chars // 4)
    parts = [shorten(rest, msgspec.structs.replace(limits, max_chars=max(room, 200))), error]
    return neutral("\n".join(part for part in parts if part))


def shorten(text: str, limits: OutputLimits) -> str:
    """The text within the limits: long lines cut, then head and tail with what was left out said between them."""
    lines = [_cut_line(line, limits.max_line_chars) for line in text.split("\n")]
    head, tail = list(lines), []
    if len(lines) > limits.max_lines:
        keep_head = limits.max_lines * 3 // 5
        head, tail = lines[:keep_head], lines[keep_head - limits.max_lines :]
    # Lines leave from the middle until the characters fit too.
    if not tail and sum(map(len, head)) + len(head) - 1 > limits.max_chars:
        middle = max(1, len(head) * 3 // 5)
        head, tail = head[:middle], head[middle:]
    room = limits.max_chars - 60  # for the note between
    while tail and sum(len(line) + 1 for line in (*head, *tail)) > room and len(head) + len(tail) > 2:
        longer = head if sum(map(len, head)) > 1.5 * sum(map(len, tail)) and len(head) > 1 else tail
        if longer is tail and len(tail) == 1:
            longer = head
        longer.pop(-1 if longer is head else 0)
    shown = len(head) + len(tail)
    note = [] if shown == len(lines) else [f"... [{shown} of {len(lines)} lines shown] ..."]
    return "\n".join([*head, *note, *tail])


def _cut_line(line: str, limit: int) -> str:
    if len(line) <= limit:
        return line
    keep_head = limit * 3 // 5
    return f"{line[:keep_head]} ... [{limit:,} of {len(line):,} characters shown] ... {line[keep_head - limit :]}"


def _error_text(error: dict[str, Any], limits: OutputLimits) -> str:
    """The traceback with its last line, the exception's, whole up to half the limits."""
    name, value = str(error.get("ename", "Error")), _clean(str(error.get("evalue", "")))
    headline = f"{name}: {value}" if value else name
    first, *more = headline.split("\n")
    half = max(limits.max_chars // 4, 100)
    summary = shorten(
        "\n".join([_cut_line(first, half), *more]), msgspec.structs.replace(limits, max_chars=max(2 * half, 200))
    )
    frames = _clean("\n".join(map(str, error.get("traceback", [])))).rstrip()
    frames = frames.removesuffix(headline.rstrip()).rstrip()
    if not frames:
        return summary
    return shorten(frames, msgspec.structs.replace(limits, max_chars=max(2 * half, 200))) + "\n" + summary


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


def _joined(text: str | Sequence[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def _clean(text: str) -> str:
    """Without terminal codes; a line that was overwritten with a carriage return shows its last state."""
    text = _ANSI.sub("", text)
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n"))
    text = _UNPRINTED.sub("\ufffd", text)
    return text.encode("utf-8", "replace").decode("utf-8")
