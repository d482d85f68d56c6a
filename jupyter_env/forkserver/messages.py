"""JSON messages with descriptors over SOCK_SEQPACKET: one message is one packet."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

_MAX_BYTES, _MAX_FDS = 1 << 20, 16


def tell(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send it, unless the other end is gone."""
    with contextlib.suppress(OSError):
        connection.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """The next message, still encoded, and its descriptors; no bytes at the end."""
    try:
        message, fds, _, _ = socket.recv_fds(connection, _MAX_BYTES, _MAX_FDS)
        return message, list(fds)
    except ConnectionError:  # it went away with an answer unread
        return b"", []
