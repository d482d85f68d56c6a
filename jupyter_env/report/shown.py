"""What a page shows of an episode: plain data, made for the report and for the live page alike.

Everything in a record is hostile: it becomes text on the page, never markup. HTML and SVG outputs are not rendered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from jupyter_env.action import Message
from jupyter_env.episode import CellRecord, EpisodeRecord
from jupyter_env.interpreters.output import OutputLimits, render_outputs

SHOWN = OutputLimits(max_lines=2_000, max_line_chars=20_000, max_chars=100_000)
"""How much of one output the page holds: one endless loop of prints must not make it too large to open."""

_COPIED = (
    *("id", "task_id", "question", "guidelines", "files", "level", "dataset", "provenance", "agent", "seed"),
    *("turns", "malformed_turns", "answer", "expected", "error", "duration_s", "cell_s"),
)
_LAST = {"answered": "answer", "infrastructure_error": "lost"}
"""Kind of a last message that nothing followed, by stop reason; else it is `stopped`: its cell was running."""
_BASE64 = re.compile("(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_FENCE = re.compile(r"^```(?:python|py)[ \t]*\n.*?^```[ \t]*$", re.DOTALL | re.MULTILINE)


def shown_episode(record: EpisodeRecord) -> dict[str, Any]:
    """All of an episode that a page shows, outputs within `SHOWN` and as text or images only."""
    first = next((i for i, m in enumerate(record.messages) if m.get("role") == "assistant"), len(record.messages))
    return {
        **{name: getattr(record, name) for name in _COPIED},
        "outcome": outcome(record),
        "stop_reason": record.stop_reason or "running",
        "reason": record.verdict.reason if record.verdict else "",
        "prompt": [{"role": _text(m.get("role")), "text": _text(m.get("content"))} for m in record.messages[:first]],
        "steps": _steps(record, first),
    }


def outcome(record: EpisodeRecord) -> str:
    """How an episode ended, in the words of the page."""
    if record.stop_reason == "infrastructure_error":
        return "machine failure"
    if record.stop_reason == "answered" and record.verdict is None:  # only the benchmark's owner has the answer
        return "not judged"
    return "no answer" if record.verdict is None else "correct" if record.verdict.correct else "wrong"


def _steps(record: EpisodeRecord, first: int) -> list[dict[str, Any]]:
    """One for each message of the agent, which is one turn, with what it led to."""
    cells = {cell.turn: cell for cell in record.cells}
    starts = [i for i, m in enumerate(record.messages) if i >= first and m.get("role") == "assistant"]
    steps = []
    for turn, (start, end) in enumerate(zip(starts, [*starts, len(record.messages)][1:], strict=True), 1):
        observation = _text(record.messages[start + 1].get("content")) if start + 1 < end else ""
        step = {"turn": turn, "kind": "malformed", "observation": observation, **_said(record.messages[start])}
        if turn in cells:
            step |= _ran(cells[turn], step)
        elif not observation and end == len(record.messages):  # a malformed message is told what is wrong with it
            step["kind"] = _LAST.get(record.stop_reason or "", "stopped")
        steps.append(step)
    return steps


def _said(message: Message) -> dict[str, str]:
    """The agent's message: its reasoning, its text, and its calls as they were made."""
    before, _, content = _text(message.get("content")).rpartition("</think>")
    calls = message.get("tool_calls") or []
    arguments: dict[str, Any] = {}
    match calls:
        case [{"function": {"arguments": dict(given)}}]:
            arguments = given
    parts = (content.strip(), _text(arguments.get("comment")).strip())
    return {
        "reasoning": (_text(message.get("reasoning_content")) or before.replace("<think>", "")).strip(),
        "prose": "\n\n".join(dict.fromkeys(part for part in parts if part)),
        "code": _text(arguments.get("code")),
        "calls": json.dumps(calls, indent=1, ensure_ascii=False, default=str) if calls else "",
    }


def _ran(cell: CellRecord, said: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell adds to the message that held it."""
    outputs = [shown for stream, run in groupby(cell.outputs, _stream) for shown in _shown(stream, list(run))]
    seen = said["observation"] or cell.text
    # What the agent saw is worth a second showing only where it was shortened or says more.
    same = " ".join(shown["text"] for shown in outputs).split() == seen.replace("(no output)", "").split()
    return {
        "kind": "cell",
        "status": cell.status,
        "duration_s": cell.duration_s,
        "prose": _FENCE.sub("", said["prose"]).strip() or cell.comment,
        "code": cell.code,
        "outputs": outputs,
        "observation": "" if same else seen,
    }


def _stream(output: Mapping[str, Any]) -> str:
    return _text(output.get("name")) or "stdout" if output.get("output_type") == "stream" else ""


def _shown(stream: str, outputs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Outputs in a row of the same stream as one text; other outputs each by itself."""
    if stream:
        return [{"kind": stream, "text": render_outputs(outputs, SHOWN)}]
    return [_shown_one(output, render_outputs([output], SHOWN)) for output in outputs]


def _shown_one(output: Mapping[str, Any], text: str) -> dict[str, str]:
    if output.get("output_type") == "error":
        return {"kind": "error", "text": text}
    data = output.get("data", {})
    for mime in ("image/png", "image/jpeg"):
        if content := "".join(_text(data.get(mime)).split()):
            if _BASE64.fullmatch(content):
                return {"kind": "image", "mime": mime, "base64": content, "text": text}
            return {"kind": "note", "text": f"{mime} that is not base64: not shown"}
    if "image/svg+xml" in data:
        return {"kind": "note", "text": "SVG image: not shown, for it may hold scripts"}
    return {"kind": "result" if "text/plain" in data else "note", "text": text}


def _text(value: Any) -> str:
    """Text of a message's field, whatever a model or server put there."""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) if isinstance(part, Mapping) else _text(part) for part in value)
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)
