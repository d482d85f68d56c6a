"""A lean asynchronous client of one kernel: its shell and iopub sockets, without threads.

`jupyter_client`'s own client parses every message whole. This one reads the header first, so that a flood of
output can be passed over without being decoded, and refuses a single message above `MAX_MESSAGE_BYTES`.
Messages: https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from jupyter_client.session import Session

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""A larger message (one print of it, say) is dropped by the socket before it is in memory."""

_GREETING_S = 0.25

_contexts: dict[int, zmq.asyncio.Context] = {}


def _context() -> zmq.asyncio.Context:
    """One for the process: its io thread serves hundreds of kernels. A forked child makes its own."""
    if os.getpid() not in _contexts:
        context = zmq.asyncio.Context()
        context.set(zmq.MAX_SOCKETS, 16_384)
        _contexts.clear()
        _contexts[os.getpid()] = context
    return _contexts[os.getpid()]


class Reply(msgspec.Struct, frozen=True):
    """A message from the kernel, its content still encoded."""

    kind: str
    parent_id: str
    raw_content: bytes

    def content(self) -> dict[str, Any]:
        """The decoded content; empty where it is no JSON object (hostile code can write to the sockets)."""
        try:
            # Printed surrogates arrive as bytes that are no UTF-8.
            content = msgspec.json.decode(self.raw_content.decode("utf-8", "replace"), type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            return {}
        return content


class _Header(msgspec.Struct):
    msg_type: str = ""
    msg_id: str = ""


class Channels:
    """The two sockets of a kernel, connected; made and used in one event loop."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection
        self._session = Session(key=connection["key"].encode(), signature_scheme=connection["signature_scheme"])
        self.shell = self._connect(zmq.DEALER, "shell_port")
        self.iopub = self._connect_iopub()

    def _connect_iopub(self) -> zmq.asyncio.Socket:
        socket = self._connect(zmq.SUB, "iopub_port")
        socket.subscribe(b"")
        return socket

    def _connect(self, kind: int, port: str) -> zmq.asyncio.Socket:
        connection = self._connection
        socket = _context().socket(kind)
        socket.linger = 0
        socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        separator = "-" if connection["transport"] == "ipc" else ":"
        socket.connect(f"{connection['transport']}://{connection['ip']}{separator}{connection[port]}")
        return socket

    async def send(self, socket: zmq.asyncio.Socket, kind: str, content: dict[str, Any]) -> str:
        """Send a request; returns its message id."""
        message = self._session.msg(kind, content)
        await socket.send_multipart(self._session.serialize(message))
        msg_id: str = message["header"]["msg_id"]
        return msg_id

    async def receive(self, socket: zmq.asyncio.Socket) -> Reply | None:
        """The next message; None for one that is no Jupyter message (hostile code can write to the sockets)."""
        frames = await socket.recv_multipart()
        try:
            start = frames.index(b"<IDS|MSG>")
            header = msgspec.json.decode(frames[start + 2], type=_Header)
            parent = msgspec.json.decode(frames[start + 3], type=_Header)
            return Reply(header.msg_type, parent.msg_id, frames[start + 5])
        except (ValueError, IndexError, msgspec.DecodeError):
            return None

    async def execute(self, code: str) -> str:
        """Ask for a cell to be run; returns the request's id, the parent of all that comes of it."""
        request = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
        return await self.send(self.shell, "execute_request", {**request, "allow_stdin": False, "stop_on_error": True})

    async def wait_until_ready(self) -> None:
        """Return when the kernel answers and its outputs arrive here too (ipykernel 6 and 7 alike)."""
        answered = heard = False
        while not (answered and heard):
            await self.send(self.shell, "kernel_info_request", {})
            waits = {asyncio.ensure_future(self.receive(socket)): socket for socket in (self.shell, self.iopub)}
            # A subscription takes effect a moment after the connection; until then, ask again.
            done, pending = await asyncio.wait(waits, timeout=1.0, return_when=asyncio.ALL_COMPLETED)
            for task in pending:
                task.cancel()
            answered |= any(waits[task] is self.shell for task in done)
            heard |= any(waits[task] is self.iopub for task in done)

    async def wait_until_heard(self) -> None:
        """Return when outputs arrive here, of a kernel that is known to be there.

        ipykernel 7 greets who subscribes, which spares a request; with ipykernel 6 this ends as `wait_until_ready`.
        """
        try:
            await asyncio.wait_for(self.receive(self.iopub), _GREETING_S)
        except TimeoutError:
            await self.wait_until_ready()

    async def reconnect_iopub(self) -> None:
        """Hear outputs again: libzmq gives up a connection for good over a message that is too large."""
        self.iopub.close(linger=0)
        self.iopub = self._connect_iopub()
        await self.wait_until_ready()

    def close(self) -> None:
        """Close the sockets; unsent messages are dropped."""
        for socket in (self.shell, self.iopub):
            socket.close(linger=0)
