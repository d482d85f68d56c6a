"""One forked kernel as its client holds it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .folder import ServerFolder
from .pidfd import pid_of


class ServerError(Exception):
    """The server does not start, is gone, or could not start a kernel."""


class ServerFullError(ServerError):
    """The machine has no room for one more process now."""


class Exit(NamedTuple):
    """How a kernel ended."""

    code: int | None
    """Negative: a signal's number. None for a branch, whose parent alone is told."""
    out_of_memory: bool
    """Killed by the system for using more memory than its control group may."""


class Endpoint:
    """Where a kernel is reached: listening sockets in a folder, made here, so that the kernel opens no path.

    Attributes:
        folder: of the sockets; removed with the endpoint.
        connection: the content of a connection file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
        ports = {name: number for number, name in enumerate(names, start=1)}
        key = os.urandom(16).hex()
        self.connection: dict[str, Any] = {
            **ports,
            "transport": "ipc",
            "ip": str(folder / "k"),
            "key": key,
            "signature_scheme": "hmac-sha256",
        }
        self._paths = [folder / f"k-{port}" for port in ports.values()]

    def listen(self, *, lean: bool) -> list[socket.socket]:
        """Fresh sockets, in the order of the ports; the first two alone if lean."""
        sockets = []
        for path in self._paths[: 2 if lean else None]:
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(path))
            listener.listen(128)
            sockets.append(listener)
        return sockets

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Source(Protocol):
    """What a kernel needs of where it comes from."""

    folder: ServerFolder
    capped: bool

    def branch(self, connection: socket.socket) -> Awaitable[ForkedKernel]:
        """See `ForkedKernel.branch`."""


class ForkedKernel:
    """A running kernel, which lives until it is killed, ends by itself, or its server ends.

    Attributes:
        endpoint: its sockets.
        pid: of its process on the host, once it is ready.
    """

    def __init__(self, server: Source, connection_socket: socket.socket, endpoint: Endpoint):
        self.endpoint = endpoint
        self.pid = 0
        self._server = server
        self._socket = connection_socket
        self._pidfd = -1
        self._awaited = {"forked", "ready", *(("capped",) if server.capped else ())}
        self._branching = asyncio.Lock()
        self._on_close: list[Callable[[], object]] = []

    async def ready(self) -> None:
        """Return when its sockets are bound and its caps are in place.

        Raises:
            ServerError: it did not start; it is closed then.
        """
        try:
            while self._awaited:
                await readable(self._socket)
                self.take_news()
        except BaseException:
            self.close()
            raise

    def take_news(self) -> bool:
        """Read what the server has said so far; returns whether the kernel is ready. Never waits.

        Raises:
            ServerError: it did not start.
        """
        while self._awaited:
            message = self._receive()
            if message is None:
                return False
            if message.keys().isdisjoint(self._awaited):
                raise _not_started(message)
            self._awaited -= message.keys()
        return True

    async def attach(self, files: Mapping[str, str]) -> None:
        """Show it host files read-only, as `data/<name>`; before it has run any code.

        Raises:
            ServerError: some file is not there, or the kernel is gone.
        """
        if not files:
            return
        shown = {name: self._server.folder.readable_by_all(path) for name, path in files.items()}
        try:
            self._socket.send(json.dumps({"attach": shown}).encode())
        except OSError as error:
            raise ServerError(f"the fork server is gone: {error}") from error
        while (message := self._receive()) is None:
            await readable(self._socket)
        if "attached" not in message:
            raise ServerError(str(message.get("error", "the kernel ended as it was handed its files")))

    async def branch(self) -> ForkedKernel:
        """A copy of the kernel as it is between two cells, independent from here on; see `branching`.

        Raises:
            ServerError: the kernel is not branchable, or its state is not: the code has started threads or processes.
        """
        async with self._branching:
            return await self._server.branch(self._socket)

    async def wait(self) -> Exit:
        """How it ended, once it has.

        Raises:
            ServerError: the server has ended, and the kernel with it.
        """
        while True:
            message = self._receive()
            if message is None:
                await readable(self._socket)
            elif "gone" in message:
                raise ServerError("the fork server has ended, and its kernels with it")
            elif "exit" in message:
                return Exit(message["exit"], message["out_of_memory"])

    def _receive(self) -> dict[str, Any] | None:
        """The next message; None if there is none yet; `gone` at the end."""
        space = socket.CMSG_SPACE(array.array("i").itemsize) if self._pidfd < 0 else 0
        try:
            data, ancillary, _, _ = self._socket.recvmsg(65_536, space, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionError:
            data, ancillary = b"", []
        for _level, _kind, content in ancillary:
            self._pidfd = array.array("i", content)[0]
            self.pid = pid_of(self._pidfd)
        message: dict[str, Any] = json.loads(data or b'{"gone": true}')
        return message

    def interrupt(self) -> None:
        """SIGINT to the kernel and the processes of its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, 0)  # the number is still this kernel's
            os.killpg(self.pid, signal.SIGINT)

    def send_signal(self, number: int) -> None:
        """Any signal, to the kernel's process alone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL; as the first process of its pid namespace it takes all others there with it."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self, *, keep_endpoint: bool = False) -> None:
        """Kill it and free what is held here for it; the server reaps it. A second call does nothing.

        Args:
            keep_endpoint: for its successor; see `ForkServer.spawn`.
        """
        if self._socket.fileno() < 0:
            return
        self.kill()
        self._socket.close()  # by this the server kills it too
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if not keep_endpoint:
            self.endpoint.remove()
        for call in self._on_close:
            call()

    def on_close(self, call: Callable[[], object]) -> None:
        """Call it when the kernel is closed."""
        self._on_close.append(call)


_FULL = {11, 12, 23, 24, 28}  # EAGAIN, ENOMEM, ENFILE, EMFILE, ENOSPC


def _not_started(message: dict[str, Any]) -> ServerError:
    text = str(message.get("error", "the fork server has ended" if "gone" in message else message))
    kind = ServerFullError if message.get("errno") in _FULL else ServerError
    return kind(f"the kernel did not start: {text}")


async def readable(connection: socket.socket) -> None:
    """Wait until there is something to read, or the other end is closed."""
    loop = asyncio.get_running_loop()
    arrived = loop.create_future()
    loop.add_reader(connection, _resolve, arrived)
    try:
        await arrived
    finally:
        loop.remove_reader(connection)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
