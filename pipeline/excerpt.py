"""A notebook's text cut to what a prompt has room for: long outputs first, then cells of the middle."""

from __future__ import annotations

import re

from jupyter_env.interpreters.output import OutputLimits, shorten

_BLOCK = re.compile(r"(?m)^\[cell (\d+) (code|output|markdown)\]$")
_COUNTED_ALONE = re.compile(r"[0-9]|[^\x00-\x7f]")
_LIMITS = (
    OutputLimits(max_lines=30, max_chars=3000),
    OutputLimits(max_lines=15, max_chars=1200),
    OutputLimits(max_lines=8, max_chars=500, max_line_chars=200),
)


def estimate_tokens(text: str) -> int:
    """About how many tokens a Qwen tokenizer makes of a text: digits and what is not ASCII one each, the rest 3.3
    characters a token (`benchmarks/prefill.py` compares with the real one)."""
    alone = len(_COUNTED_ALONE.findall(text))
    return alone + round((len(text) - alone) / 3.3)


def blocks(text: str) -> list[tuple[int, str, str]]:
    """(cell, kind, text with heading) of a rendered notebook; what looks like a heading in a cell is escaped there."""
    marks = list(_BLOCK.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return [(int(m[1]), m[2], text[m.start() : end].rstrip("\n")) for m, end in zip(marks, ends, strict=True)]


def output_of(text: str, cell: int) -> str | None:
    """What the output block of a cell holds, without heading and fence; none where there is no such block."""
    for number, kind, block in blocks(text):
        if (number, kind) == (cell, "output"):
            return "\n".join(block.split("\n")[2:-1])
    return None


def excerpt(text: str, max_tokens: int) -> str:
    """The notebook within so many tokens, by `estimate_tokens`; what is left out is said in its place."""
    if estimate_tokens(text) <= max_tokens:
        return text
    parts = blocks(text)
    for limits in _LIMITS:
        shown = [_shortened(kind, block, limits) for _, kind, block in parts]
        if estimate_tokens("\n\n".join(shown)) <= max_tokens:
            return "\n\n".join(shown) + "\n"
    # Beginning and end say most: what was read, and what came of it.
    sizes = [estimate_tokens(block) + 1 for block in shown]
    head, tail, head_size, tail_size, room = 0, len(shown), 0, 0, max_tokens - 20
    while head < tail:
        size = sizes[head] if head_size <= tail_size else sizes[tail - 1]
        if size > room:
            break
        room -= size
        if head_size <= tail_size:
            head, head_size = head + 1, head_size + size
        else:
            tail, tail_size = tail - 1, tail_size + size
    left_out = (
        f"[{tail - head} parts of the notebook, from cell {parts[head][0]} to {parts[tail - 1][0]}, left out here]"
    )
    return "\n\n".join([*shown[:head], left_out, *shown[tail:]]) + "\n"


def _shortened(kind: str, block: str, limits: OutputLimits) -> str:
    if kind != "output":
        return block if len(block) <= 4 * limits.max_chars else shorten(block, _wide(limits))
    heading, fence, *body, closing = block.split("\n")
    return "\n".join((heading, fence, shorten("\n".join(body), limits), closing))


def _wide(limits: OutputLimits) -> OutputLimits:
    """Code and prose say more than outputs, and get four times their room."""
    return OutputLimits(
        max_lines=4 * limits.max_lines, max_chars=4 * limits.max_chars, max_line_chars=limits.max_line_chars
    )
