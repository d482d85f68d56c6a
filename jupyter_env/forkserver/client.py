"""The client's side: a server process, and kernels asked of it.

Everything here runs in the trainer; nothing of it is loaded in the server or in a kernel.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import cgroups
from .environment import SETTINGS, THREADS, kernel_environment
from .folder import ServerFolder
from .pidfd import pid_of
from .view import HOME, RUN, TMP

DEFAULT_PRELOAD = ("numpy", "pandas", "matplotlib.pyplot", "sklearn", "scipy")
"""What nearly every analysis imports; packages that are not installed are left out."""

_PACKAGE = str(Path(__file__).parent)
_BOOT = """
import importlib.util, json, sys
folder = sys.argv[1]
locations = {"submodule_search_locations": [folder]}
spec = importlib.util.spec_from_file_location("forkserver", folder + "/__init__.py", **locations)
sys.modules["forkserver"] = importlib.util.module_from_spec(spec)
from forkserver.server import main
main(int(sys.argv[2]), json.loads(sys.argv[3]))
"""
_FIRST_UID, _UIDS = 100_000, 50_000
"""Users of kernels when the trainer is root: above those of people and services."""


_BRANCH_TIMEOUT_S = 30.0
"""A kernel whose code keeps it from answering cannot be branched."""


class ServerError(Exception):
    """The server does not start, is gone, or could not start a kernel."""


class ServerFullError(ServerError):
    """The machine has no room for one more process now."""


@dataclass(frozen=True, kw_only=True)
class Caps:
    """What one isolated kernel may use."""

    work_bytes: int
    """Of all files that it writes; they lie in memory."""
    memory_bytes: int
    """Of each process (RLIMIT_DATA), and of all together where there are control groups."""
    processes: int
    """Threads too."""
    branchable: bool = False
    """Whether it may be branched; this costs a further process and some milliseconds."""


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


class ForkedKernel:
    """A running kernel, which lives until it is killed, ends by itself, or its server ends.

    Attributes:
        endpoint: its sockets.
        pid: of its process on the host, once it is ready.
    """

    def __init__(self, server: ForkServer, connection_socket: socket.socket, endpoint: Endpoint):
        self.endpoint = endpoint
        self.pid = 0
        self._server = server
        self._socket = connection_socket
        self._pidfd = -1
        self._awaited = {"forked", "ready", *(("capped",) if server.capped else ())}
        self._branching = asyncio.Lock()
        self._on_close: list[Callable[[], None]] = []

    async def ready(self) -> None:
        """Return when its sockets are bound and its caps are in place.

        Raises:
            ServerError: it did not start; it is closed then.
        """
        try:
            while self._awaited:
                await _readable(self._socket)
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
        readable = {name: self._server.folder.readable_by_all(path) for name, path in files.items()}
        try:
            self._socket.send(json.dumps({"attach": readable}).encode())
        except OSError as error:
            raise ServerError(f"the fork server is gone: {error}") from error
        while (message := self._receive()) is None:
            await _readable(self._socket)
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
                await _readable(self._socket)
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

    def on_close(self, call: Callable[[], None]) -> None:
        """Call it when the kernel is closed."""
        self._on_close.append(call)


_FULL = {11, 12, 23, 24, 28}  # EAGAIN, ENOMEM, ENFILE, EMFILE, ENOSPC


def _not_started(message: dict[str, Any]) -> ServerError:
    text = str(message.get("error", "the fork server has ended" if "gone" in message else message))
    kind = ServerFullError if message.get("errno") in _FULL else ServerError
    return kind(f"the kernel did not start: {text}")


class ForkServer:
    """One server process with its preloads.

    Args:
        python: interpreter of the kernels; 3.11 or newer, with ipykernel.
        preload: modules to import before the first fork.
        isolated: give each kernel namespaces, a user and a file system view of its own.
        threads: for BLAS and OpenMP in the kernels; the server itself must not use more than one.
        gpu: let kernels see the GPUs.
        start_timeout_s: for importing the preloads.

    Raises:
        ServerError: it does not start in time; the message holds its last words.
    """

    def __init__(
        self,
        *,
        python: str = sys.executable,
        preload: Sequence[str] = DEFAULT_PRELOAD,
        isolated: bool = True,
        threads: int = 1,
        gpu: bool = False,
        start_timeout_s: float = 120.0,
    ) -> None:
        self.python = python
        self.isolated = isolated
        self.folder = ServerFolder()
        groups = cgroups.find() if isolated else {}
        self.capped = bool(groups)
        self._environment = kernel_environment(python, threads, gpu)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        settings = {
            "isolated": isolated,
            "preload": list(preload),
            "cgroups": groups,
            # This package, wherever it is installed, looks empty to kernels.
            "hidden": [str(Path(_PACKAGE).parent)],
            "devices": _gpu_devices() if gpu else [],
        }
        self._control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server_end, self.folder.log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-P", "-c", _BOOT, _PACKAGE, str(server_end.fileno()), json.dumps(settings)],
                env=self._environment | self.folder.environment() | dict.fromkeys(THREADS, "1"),
                cwd=self.folder.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[server_end.fileno()],
                start_new_session=True,
            )
        _running.add(self)
        self._control.settimeout(start_timeout_s)
        try:
            greeting = self._control.recv(65_536)
        except TimeoutError:
            greeting = b""
        if not greeting:
            words = self.folder.log.read_bytes()[-2000:].decode(errors="replace").strip()
            self.close()
            raise ServerError(
                f"the fork server ({python}) did not start in {start_timeout_s:g} s. Its last words: {words}"
            )
        self._control.settimeout(None)
        self.not_preloaded: dict[str, str] = json.loads(greeting)["not_preloaded"]

    @property
    def pid(self) -> int:
        """Of the server process."""
        return self._process.pid

    def spawn(
        self,
        caps: Caps | None = None,
        *,
        folder: str | None = None,
        env: Mapping[str, str] | None = None,
        endpoint: Endpoint | None = None,
        lean: bool = False,
    ) -> ForkedKernel:
        """Ask for a kernel; await its `ready()` before use (tens of milliseconds). Never waits.

        Args:
            caps: what it may use; needed if the server isolates.
            folder: its working folder. To an isolated kernel it shows the host's files, and keeps changes to itself;
                without one it has an empty folder, and files can be attached.
            env: its whole environment; without isolation, the caller's affair.
            lean: for a client of our own kind: of shell and iopub alone, one request at a time.
            endpoint: of a kernel that has ended, whose clients are to reach this one.

        Raises:
            ServerError: the server is gone.
        """
        number = next(self._numbers)
        endpoint = endpoint or Endpoint(self.folder.for_kernel(number))
        spec: dict[str, Any] = {
            "connection": {**endpoint.connection, "text": json.dumps(endpoint.connection)},
            "lean": lean,
        }
        if self.isolated:
            assert caps is not None, "isolated kernels have caps"
            uid = _FIRST_UID + number % _UIDS if os.getuid() == 0 else None
            spec["connection"] |= {"file": f"{RUN}/kernel.json"}
            spec["isolation"] = {"uid": uid, "folder": folder, **asdict(caps)}
            spec["env"] = self._environment | _HOMES
        else:
            spec["connection"] |= {"file": str(endpoint.folder / "kernel.json")}
            spec["cwd"] = folder or os.getcwd()
            spec["env"] = {**(os.environ if env is None else env), **SETTINGS}
        return self._ask(self._control, {"spawn": spec}, endpoint, lean=lean)

    async def branch(self, connection: socket.socket) -> ForkedKernel:
        """See `ForkedKernel.branch`; `connection` is that kernel's."""
        endpoint = Endpoint(self.folder.for_kernel(next(self._numbers)))
        text = json.dumps(endpoint.connection)
        spec = {"connection": {**endpoint.connection, "text": text, "file": f"{RUN}/kernel.json"}}
        kernel = self._ask(connection, {"branch": spec}, endpoint, lean=True)
        await asyncio.wait_for(kernel.ready(), _BRANCH_TIMEOUT_S)
        return kernel

    def _ask(self, line: socket.socket, message: dict[str, Any], endpoint: Endpoint, *, lean: bool) -> ForkedKernel:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listeners = endpoint.listen(lean=lean)
        try:
            with self._lock:
                socket.send_fds(line, [json.dumps(message).encode()], [each.fileno() for each in (theirs, *listeners)])
        except OSError as error:
            ours.close()
            endpoint.remove()
            raise ServerError(f"the fork server is gone: {error}") from error
        finally:
            for passed in (theirs, *listeners):
                passed.close()
        return ForkedKernel(self, ours, endpoint)

    def alive(self) -> bool:
        """Whether the server runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the server and with it all of its kernels."""
        _running.discard(self)
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._process.kill()
        self._process.wait()
        self.folder.remove()

    def forget(self) -> None:
        """In a forked child of the client: let go, so that the server ends with the process that started it."""
        self._control.close()


_running: weakref.WeakSet[ForkServer] = weakref.WeakSet()


def _forget_all() -> None:
    for server in list(_running):
        server.forget()
    _running.clear()


os.register_at_fork(after_in_child=_forget_all)

_HOMES = {"HOME": HOME, "TMPDIR": TMP, "MPLCONFIGDIR": f"{HOME}/.matplotlib", "USER": "agent"}


def _gpu_devices() -> list[str]:
    return sorted(str(path) for path in Path("/dev").glob("nvidia*") if path.is_char_device())


async def _readable(connection: socket.socket) -> None:
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
