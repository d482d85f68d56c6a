"""What two notebooks are compared by: their code without what copying changes.

`exact_key` hashes code without blanks and comment lines. `skeleton_lines` goes further: every bare name and number
becomes `V`, so that renamed copies stay copies; attributes, calls and quoted words stay, and tell notebooks apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import xxhash

LINES_VERSION = 1
"""Raised when a change here changes which lines a notebook has."""

MIN_LINES = 8
"""With fewer distinct lines than this, a chance resemblance is likely, and only exact copies count."""

# A whole word, not after a dot (attribute) or a quote, not before a bracket (call) or a quote. The possessive
# quantifier keeps the engine from trying every shorter name.
_BARE = re.compile(rb"\b(?<![.'\"])\w++(?![('\"])")
_BLANKS = b" \t\r\x0b\x0c"
_SHORTEST = 6


def exact_key(code: Iterable[str]) -> bytes:
    """16 bytes, equal for code that differs only in blanks, blank lines and comment lines; all zero for none."""
    lines = "\n".join(code).encode("utf-8", "replace").translate(None, _BLANKS).split(b"\n")
    kept = b"\n".join([line for line in lines if line and line[0] != 35])  # 35 is "#"
    return xxhash.xxh3_128_digest(kept) if kept else bytes(16)


def skeleton_lines(code: Iterable[str]) -> set[bytes]:
    """The distinct lines with V for bare names and numbers, without blanks, comments, magics and short lines."""
    text = "\n".join(code).encode("utf-8", "replace")
    lines = _BARE.sub(b"V", text).translate(None, _BLANKS).split(b"\n")
    return {line for line in lines if len(line) >= _SHORTEST and line[0] not in b"#%!"}


def line_hashes(code: Iterable[str]) -> np.ndarray:
    """The skeleton lines as sorted uint64 hashes; empty where there are fewer than `MIN_LINES`."""
    lines = skeleton_lines(code)
    if len(lines) < MIN_LINES:
        return np.empty(0, dtype=np.uint64)
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, lines), dtype=np.uint64, count=len(lines))
    hashes.sort()
    return hashes
