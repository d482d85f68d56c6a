"""The client's side: a server process, and kernels asked of it.

Everything here runs in the trainer; nothing of it is loaded in the server or in a kernel.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_PRELOAD = ("numpy", "pandas", "matplotlib.pyplot", "sklearn", "scipy")
"""What nearly every analysis imports; packages that are not installed are left out."""

_FOLDER = str(Path(__file__).parent)
_BOOT = """
import importlib.util, json, sys
folder = sys.argv[1]
locations = {"submodule_search_locations": [folder]}
spec = importlib.util.spec_from_file_location("forkserver", folder + "/__init__.py", **locations)
sys.modules["forkserver"] = importlib.util.module_from_spec(spec)
from forkserver.server import main
main(int(sys.argv[2]), json.loads(sys.argv[3]))
"""
_ENVIRONMENT = {
    # One thread in the server, or it could not fork.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONHASHSEED": "0",  # sets print in the same order in every kernel
    "PYTHONNOUSERSITE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
_FIRST_UID = 100_000
_UIDS = 50_000


class ServerError(Exception):
    """The server does not start, or is gone."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What an isolated kernel sees and may use."""

    files: Mapping[str, str]
    """Host path by name below `data/`, read-only."""
    work_bytes: int
    """Of its working folder, and of /tmp."""
    memory_bytes: int
    processes: int


@dataclass(kw_only=True)
class ForkedKernel:
    """A running kernel, which lives until it is killed, ends by itself, or its server ends."""

    pid: int
    connection_file: str
    _pidfd: int = field(repr=False)
    _connection: socket.socket = field(repr=False)
    _folder: str = field(repr=False)

    async def wait(self) -> int:
        """The exit code (negative: a signal's number), once it has ended.

        Raises:
            ServerError: the server has ended, and the kernel with it.
        """
        while True:
            await _readable(self._connection)
            message = json.loads(self._connection.recv(65_536) or b'{"gone": true}')
            if "gone" in message:
                raise ServerError("the fork server has ended")
            if "exit" in message:
                return int(message["exit"])

    def interrupt(self) -> None:
        """SIGINT to the kernel and the processes of its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, 0)  # the number is still this kernel's
            os.killpg(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL; as the first process of its pid namespace it takes all others there with it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Kill it and free what is held here for it; the server reaps it."""
        self.kill()
        self._connection.close()
        os.close(self._pidfd)
        shutil.rmtree(self._folder, ignore_errors=True)


class ForkServer:
    """One server process with its preloads.

    Args:
        python: interpreter of the kernels; 3.11 or newer, with ipykernel.
        preload: modules to import before the first fork.
        isolated: give each kernel namespaces, a user and a file system view of its own.
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
        start_timeout_s: float = 120.0,
    ) -> None:
        self.python = python
        self.isolated = isolated
        self._folder = Path(tempfile.mkdtemp(prefix="jupyter-env-server-"))
        self._lock = threading.Lock()
        self._next_uid = 0
        self._control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = json.dumps({"isolated": isolated, "preload": list(preload)})
        with server_end, (self._folder / "stderr").open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-P", "-c", _BOOT, _FOLDER, str(server_end.fileno()), settings],
                env=self._environment(),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[server_end.fileno()],
                start_new_session=True,
            )
        self._control.settimeout(start_timeout_s)
        try:
            greeting = self._control.recv(65_536)
        except TimeoutError:
            greeting = b""
        if not greeting:
            words = (self._folder / "stderr").read_bytes()[-2000:].decode(errors="replace").strip()
            self.close()
            raise ServerError(
                f"the fork server ({python}) did not start in {start_timeout_s:g} s. Its last words: {words}"
            )
        self.not_preloaded: dict[str, str] = json.loads(greeting)["not_preloaded"]
        self._prefixes, self._hidden = self._python_folders()

    def _environment(self) -> dict[str, str]:
        passed = (
            "PATH",
            "LANG",
            "LC_ALL",
            "LC_CTYPE",
            "TZ",
            "LD_LIBRARY_PATH",
            "OPENBLAS_CORETYPE",
            "OPENBLAS_L2_SIZE",
        )
        home = str(self._folder)
        return {
            **{name: os.environ[name] for name in passed if name in os.environ},
            **_ENVIRONMENT,
            "HOME": home,
            "IPYTHONDIR": f"{home}/ipython",
            "MPLCONFIGDIR": f"{home}/matplotlib",
        }

    def _python_folders(self) -> tuple[list[str], list[str]]:
        """The folders of the kernel's Python, and those in them that must look empty: this package's own."""
        found = "[sys.prefix, sys.base_prefix, sysconfig.get_path('purelib')]"
        code = f"import json, sys, sysconfig; print(json.dumps({found}))"
        answer = subprocess.run([self.python, "-c", code], capture_output=True, check=True, text=True, timeout=30)
        prefix, base_prefix, site_packages = json.loads(answer.stdout)
        own = {f"{site_packages}/jupyter_env", str(Path(_FOLDER).parent)}
        # The shorter first: a folder is bound before what lies in it.
        return sorted({prefix, base_prefix} - {"/usr"}, key=len), sorted(own)

    async def spawn(self, view: View, *, cwd: str = "/") -> ForkedKernel:
        """Fork a kernel; returns when its sockets are bound (tens of milliseconds).

        Args:
            view: what it sees, if the server isolates.
            cwd: its working folder, if not.

        Raises:
            ServerError: the server is gone, or the fork or the isolation failed.
        """
        folder = tempfile.mkdtemp(prefix="jupyter-env-run-", dir="/tmp")  # short: a socket's path has 107 bytes
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pidfd = -1
        try:
            spec = self._spec(view, cwd, folder)
            with theirs, self._lock:
                _send_fd(self._control, {"spawn": spec}, theirs.fileno())
            await _readable(ours)
            first, pidfd = _receive_fd(ours)
            await _readable(ours)
            second = json.loads(ours.recv(65_536) or b'{"error": "the server is gone"}')
            if "ready" not in second:
                raise ServerError(f"the kernel did not start: {second.get('error', second)}")
        except BaseException as error:
            ours.close()
            if pidfd >= 0:
                os.close(pidfd)
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise ServerError(f"the fork server is gone: {error}") from error
            raise
        connection_file = spec["connection_file"]
        return ForkedKernel(
            pid=first["pid"], connection_file=connection_file, _pidfd=pidfd, _connection=ours, _folder=folder
        )

    def _spec(self, view: View, cwd: str, folder: str) -> dict[str, Any]:
        """The request for one kernel whose sockets lie in the folder."""
        uid = self._own_uid(folder)
        isolation = {
            "files": {name: _readable_by_all(path, folder) for name, path in view.files.items()},
            "run": folder,
            "uid": uid,
            "hidden": self._hidden,
            "prefixes": self._prefixes,
            "work_bytes": view.work_bytes,
            "memory_bytes": view.memory_bytes,
            "processes": view.processes,
        }
        return {
            "connection_file": _write_connection_file(folder),
            "cwd": cwd,
            "env": self._kernel_environment(cwd),
            "isolation": isolation,
        }

    def _own_uid(self, folder: str) -> int | None:
        """A user for the kernel alone, where we may give one."""
        if not self.isolated or os.getuid() != 0:
            return None
        with self._lock:
            uid = _FIRST_UID + self._next_uid
            self._next_uid = (self._next_uid + 1) % _UIDS
        os.chown(folder, uid, uid)
        return uid

    def _kernel_environment(self, cwd: str) -> dict[str, str]:
        home = "/home/agent" if self.isolated else cwd
        passed = {name: value for name, value in self._environment().items() if name not in ("HOME", "IPYTHONDIR")}
        path = f"{Path(self.python).parent}{os.pathsep}{passed.get('PATH', os.defpath)}"
        return {
            **passed,
            "HOME": home,
            "PATH": path,
            "MPLCONFIGDIR": f"{home}/.matplotlib",
            "TMPDIR": "/tmp",
            "USER": "agent",
        }

    def alive(self) -> bool:
        """Whether the server runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the server and with it all of its kernels."""
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _write_connection_file(folder: str) -> str:
    from jupyter_client.connect import write_connection_file

    path = f"{folder}/kernel.json"
    write_connection_file(path, transport="ipc", ip=f"{folder}/k", key=os.urandom(16).hex().encode())
    Path(path).chmod(0o644)  # the kernel's user reads it; the folder is that user's alone
    return path


def _send_fd(control: socket.socket, message: dict[str, Any], fd: int) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    control.sendmsg([json.dumps(message).encode()], ancillary)


def _receive_fd(connection: socket.socket) -> tuple[dict[str, Any], int]:
    data, ancillary, _, _ = connection.recvmsg(65_536, socket.CMSG_SPACE(array.array("i").itemsize))
    fds = array.array("i")
    for _level, _kind, content in ancillary:
        fds.frombytes(content[: fds.itemsize])
    message = json.loads(data or b'{"error": "the server is gone"}')
    if "pid" not in message:
        raise ServerError(f"the kernel did not start: {message.get('error', message)}")
    return message, fds[0]


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


def _readable_by_all(path: str, folder: str) -> str:
    """The file, or a copy where only its owner may read it: the kernel is another user."""
    if Path(path).stat().st_mode & 0o004:
        return path
    handle, copy = tempfile.mkstemp(dir=folder)
    os.close(handle)
    shutil.copyfile(path, copy)
    Path(copy).chmod(0o444)
    return copy
