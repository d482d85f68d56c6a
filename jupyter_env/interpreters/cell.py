"""The outputs of one running cell, gathered from its messages into nbformat's form, within a bound."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import msgspec

from jupyter_env.interpreters.base import Status
from jupyter_env.interpreters.channels import Reply

_WORDS_CHARS = 10_000
"""Of an exception's name and value each, where the error came when there was no more room for outputs."""


class _Stream(msgspec.Struct):
    name: Literal["stdout", "stderr"]
    text: str


class _Error(msgspec.Struct):
    ename: str
    evalue: str
    traceback: list[str]


class _Transient(msgspec.Struct, frozen=True):
    display_id: str | None = None


class _Display(msgspec.Struct):
    data: dict[str, Any]
    metadata: dict[str, Any] = {}
    transient: _Transient = _Transient()
    execution_count: int | None = None

    def as_nbformat(self) -> dict[str, Any]:
        """The data with text where nbformat wants it: code can display any JSON under any type."""
        return {
            kind: value if isinstance(value, str) or kind.endswith("json") else str(value)
            for kind, value in self.data.items()
        }


class CellOutputs:
    """What has come in of one running cell.

    Args:
        request_id: of the request to run it.
        max_output_bytes: outputs beyond are counted and dropped, but for the last error's words.
    """

    def __init__(self, request_id: str, max_output_bytes: int) -> None:
        self.request_id = request_id
        self.outputs: list[dict[str, Any]] = []
        self.reply: dict[str, Any] | None = None
        self.idle = False
        self.dropped_bytes = 0
        self.lost_output = False
        self._room = max_output_bytes
        self._last_is_beyond_room = False
        self._clear_first = False
        self._displays: dict[str, dict[str, Any]] = {}

    def take(self, message: Reply) -> None:
        """Add an iopub message; beyond the room for outputs it is counted and not decoded."""
        if message.kind == "status":
            self.idle = message.content().get("execution_state") == "idle"
        elif message.kind in (
            "stream",
            "display_data",
            "execute_result",
            "error",
            "update_display_data",
            "clear_output",
        ):
            size = len(message.raw_content)
            if size > self._room:
                self.dropped_bytes += size
                if message.kind == "error":
                    self._add_beyond_room(message)
                return
            self._room -= size
            with contextlib.suppress(msgspec.ValidationError):  # a hostile kernel's own messages
                self._add(message.kind, message.content())

    def _add_beyond_room(self, error: Reply) -> None:
        """Keep the last error's words all the same: it may have ended the cell, and says why."""
        self._room = 0  # nothing comes after it
        with contextlib.suppress(msgspec.ValidationError):
            content = msgspec.convert(error.content(), _Error)
            if self._last_is_beyond_room:
                self.outputs.pop()
            self._last_is_beyond_room = True
            name, value = content.ename[:_WORDS_CHARS], content.evalue[:_WORDS_CHARS]
            self.outputs.append({"output_type": "error", "ename": name, "evalue": value, "traceback": []})

    def _add(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "clear_output":
            self._clear_first = bool(content.get("wait"))
            if not self._clear_first:
                self.outputs.clear()
            return
        if self._clear_first:
            self.outputs.clear()
            self._clear_first = False
        if kind == "stream":
            self._add_stream(msgspec.convert(content, _Stream))
        elif kind == "error":
            self.outputs.append({"output_type": "error", **msgspec.structs.asdict(msgspec.convert(content, _Error))})
        else:
            shown = msgspec.convert(content, _Display)
            output: dict[str, Any] = {
                "output_type": "display_data",
                "data": shown.as_nbformat(),
                "metadata": shown.metadata,
            }
            if kind == "execute_result":
                output |= {"output_type": kind, "execution_count": shown.execution_count}
            self._show(kind, output, shown.transient.display_id)

    def _show(self, kind: str, output: dict[str, Any], display_id: str | None) -> None:
        """Add it, or change what it updates; an update of an earlier cell's display is shown here."""
        known = self._displays.get(display_id) if display_id is not None else None
        if kind == "update_display_data" and known is not None and any(known is each for each in self.outputs):
            known |= {"data": output["data"], "metadata": output["metadata"]}
            return
        if display_id is not None:
            self._displays[display_id] = output
        self.outputs.append(output)

    def _add_stream(self, stream: _Stream) -> None:
        last = self.outputs[-1] if self.outputs else {}
        if last.get("output_type") == "stream" and last.get("name") == stream.name:
            last["text"] += stream.text
        else:
            self.outputs.append({"output_type": "stream", "name": stream.name, "text": stream.text})

    def drop_note(self) -> str:
        """Says what output was not kept; empty if all was."""
        if self.lost_output:
            return "[output too long: it could not be read]"
        return f"[output too long: {self.dropped_bytes:,} bytes more were dropped]" if self.dropped_bytes else ""

    def status(self) -> Status:
        """Of a cell that has its reply."""
        assert self.reply is not None
        if self.reply.get("status") == "ok":
            return "ok"
        # numpy's is _ArrayMemoryError
        return "out_of_memory" if str(self.reply.get("ename", "")).endswith("MemoryError") else "code_error"
