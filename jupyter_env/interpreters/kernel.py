"""The local Jupyter kernel: ipykernel in a process, a session and a folder of its own.

What it guards against: code that runs too long, that ignores interrupts, dies, floods, allocates without end or
starts daemons; none of it harms the trainer or the next episode, and data files are copies.
What it does not: the code runs as the trainer's user on the trainer's file system and network.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from jupyter_client.connect import write_connection_file

from jupyter_env.interpreters.base import CellResult, InfrastructureError, Status
from jupyter_env.interpreters.channels import Channels, Reply
from jupyter_env.interpreters.output import OutputLimits, render_outputs
from jupyter_env.interpreters.process import MARK, KernelProcess, Process

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""The trainer's variables that a kernel gets: none that could hold a secret."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_WORDS_CHARS = 10_000
"""Of an exception's name and value each, where the error came when there was no more room for outputs."""
_LAST_OUTPUT_S = 1.0
"""How long to wait for outputs still under way after the reply, when a flood has cost the last message."""


Isolation = Literal["best", "strict", "none"]


class KernelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a local kernel is started and what it may use."""

    python: str = sys.executable
    """Interpreter that runs the kernel; needs ipykernel. Tables and agents' code use its packages."""
    start_timeout_s: float = 60.0
    """Generous: on a loaded machine many kernels start at once."""
    interrupt_grace_s: float = 2.0
    """How long an interrupted cell may take to stop before the kernel is killed."""
    max_memory_bytes: int = 8 * 1024**3
    """Of data a process may allocate (RLIMIT_DATA, Linux); more gives MemoryError."""
    max_output_bytes: int = 8 * 1024**2
    """Of outputs kept for one cell, images included; the rest is read and dropped."""
    limits: OutputLimits = OutputLimits()
    """How much of the outputs the model sees."""
    isolation: Isolation = "none"
    """"best" runs forked kernels in namespaces of their own where the host allows it and warns where not, "strict"
    refuses to run then. "none" is the default until the forked kernels have passed all that the local one has."""
    max_work_bytes: int = 1024**3
    """Of an isolated kernel's working folder, and of its /tmp; both lie in memory."""
    max_processes: int = 256
    """Of an isolated kernel, threads too."""


class LocalKernel:
    """An `Interpreter` over one local ipykernel process."""

    simulated = False

    def __init__(self, settings: KernelSettings = KernelSettings()) -> None:  # noqa: B008
        self._settings = settings
        self._folder: Path | None = None
        self._process: Process | None = None
        self._channels: Channels | None = None
        self._exit: asyncio.Task[int] | None = None

    @property
    def pid(self) -> int | None:
        """Of the kernel process; None before the start and after the end."""
        return self._process.pid if self._process else None

    async def start(self, files: Mapping[str, Path]) -> None:
        """See `Interpreter.start`; the files are copied, so that nothing the code does reaches the originals."""
        try:
            self._process, connection_file = await self._launch(files)
            self._channels = Channels(json.loads(Path(connection_file).read_text()))  # noqa: ASYNC240
        except OSError as error:
            await self.close()
            raise InfrastructureError(f"the kernel could not be started: {error}") from error
        self._exit = asyncio.ensure_future(self._process.wait())
        ready = asyncio.ensure_future(self._channels.wait_until_ready())
        try:
            await asyncio.wait(
                {ready, self._exit}, timeout=self._settings.start_timeout_s, return_when="FIRST_COMPLETED"
            )
            if not ready.done():
                raise InfrastructureError(self._why_not_started())
            ready.result()
        except BaseException:
            ready.cancel()
            await self.close()
            raise

    async def _launch(self, files: Mapping[str, Path]) -> tuple[Process, str]:
        """Start the process; returns it with the path of its connection file."""
        self._folder = folder = _make_folder()
        _copy_files(files, folder / "work" / "data")
        connection_file = str(folder / "run" / "kernel.json")
        key = uuid.uuid4().hex.encode()  # ipykernel warns of messages that are not signed
        write_connection_file(connection_file, transport="ipc", ip=str(folder / "run" / "k"), key=key)
        process = KernelProcess(
            [
                self._settings.python,
                "-m",
                "ipykernel_launcher",
                "-f",
                connection_file,
                "--HistoryManager.enabled=False",
            ],
            env=_environment(folder, self._settings.python),
            cwd=folder / "work",
            stderr=folder / "run" / "stderr",
            max_memory_bytes=self._settings.max_memory_bytes,
        )
        return process, connection_file

    def _why_not_started(self) -> str:
        assert self._folder is not None and self._exit is not None
        log = (self._folder / "run" / "stderr").read_bytes()[-2000:].decode(errors="replace").strip()
        ended = f"ended with {_exit_text(self._exit.result())}" if self._exit.done() else "did not answer"
        return (
            f"the kernel ({self._settings.python} -m ipykernel_launcher) {ended} within "
            f"{self._settings.start_timeout_s:g} s of its start. Its last words: {log or 'none'}"
        )

    async def run_cell(self, code: str, timeout_s: float) -> CellResult:
        """See `Interpreter.run_cell`."""
        started = time.monotonic()
        if self._channels is None or self._exit is None or self._exit.done():
            lost = self._exit.exception() if self._exit is not None and self._exit.done() else None
            status: Status = "infrastructure_error" if lost else "kernel_died"
            text = str(lost) if lost else "The kernel is not running."
            return CellResult(status=status, outputs=[], text=text, duration_s=0, alive=False)
        try:
            request_id = await self._channels.execute(code)
        except UnicodeEncodeError as error:  # half a surrogate pair: no message can hold it
            return CellResult(status="code_error", outputs=[], text=f"UnicodeEncodeError: {error}", duration_s=0)
        cell = _Cell(request_id, self._settings.max_output_bytes)
        reading = asyncio.ensure_future(self._read(cell))
        try:
            status, note = await self._await_end(cell, reading, timeout_s)
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
        alive = (
            status not in ("kernel_died", "infrastructure_error")
            and self._process is not None
            and not self._exit.done()
        )
        text = render_outputs(cell.outputs, self._settings.limits)
        return CellResult(
            status=status,
            outputs=cell.outputs,
            text="\n".join(part for part in (text, cell.drop_note(), note) if part),
            duration_s=time.monotonic() - started,
            alive=alive,
        )

    async def _await_end(self, cell: _Cell, reading: asyncio.Task[None], timeout_s: float) -> tuple[Status, str]:
        """Wait for the reply, the process's exit and the deadline at once."""
        assert self._exit is not None
        await asyncio.wait({reading, self._exit}, timeout=timeout_s, return_when="FIRST_COMPLETED")
        if reading.done():
            reading.result()
            return cell.status(), ""
        if self._exit.done():
            if self._exit.exception() is not None:
                return "infrastructure_error", str(self._exit.exception())
            return "kernel_died", f"The kernel died ({_exit_text(self._exit.result())}). All variables are lost."
        await self.interrupt()
        await asyncio.wait(
            {reading, self._exit}, timeout=self._settings.interrupt_grace_s, return_when="FIRST_COMPLETED"
        )
        if reading.done():
            return (
                "timeout",
                f"The cell was interrupted at its limit of {timeout_s:g} s. Variables set before are kept.",
            )
        assert self._process is not None
        self._process.kill()
        await asyncio.wait({self._exit})
        return (
            "timeout",
            f"The cell ran past its limit of {timeout_s:g} s and did not react to an interrupt; the kernel was killed.",
        )

    async def _read(self, cell: _Cell) -> None:
        """Read both sockets until the cell's reply and its last output are in."""
        assert self._channels is not None
        outputs = asyncio.ensure_future(self._read_outputs(cell))
        try:
            while cell.reply is None:
                message = await self._channels.receive(self._channels.shell)
                if message and message.kind == "execute_reply" and message.parent_id == cell.request_id:
                    cell.reply = message.content()
            await asyncio.wait({outputs}, timeout=_LAST_OUTPUT_S)
            if not outputs.done():
                cell.lost_output = True
                outputs.cancel()
                await self._channels.reconnect_iopub()
        finally:
            outputs.cancel()

    async def _read_outputs(self, cell: _Cell) -> None:
        assert self._channels is not None
        while not cell.idle:
            message = await self._channels.receive(self._channels.iopub)
            if message and message.parent_id == cell.request_id:
                cell.take(message)

    async def interrupt(self) -> None:
        """See `Interpreter.interrupt`."""
        if self._process is not None:
            self._process.interrupt()

    async def close(self) -> None:
        """See `Interpreter.close`."""
        if self._channels is not None:
            self._channels.close()
        if self._process is not None:
            self._process.kill()
        if self._exit is not None:
            await asyncio.wait({self._exit})
            self._exit.exception()  # known to the cell that it ended
        if self._folder is not None:
            _remove(self._folder)
        self._channels = self._process = self._folder = None


class _Stream(msgspec.Struct):
    name: Literal["stdout", "stderr"]
    text: str


class _Error(msgspec.Struct):
    ename: str
    evalue: str
    traceback: list[str]


class _Display(msgspec.Struct):
    data: dict[str, Any]
    metadata: dict[str, Any] = {}
    execution_count: int | None = None

    def as_nbformat(self) -> dict[str, Any]:
        """The data with text where nbformat wants it: code can display any JSON under any type."""
        return {
            kind: value if isinstance(value, str) or kind.endswith("json") else str(value)
            for kind, value in self.data.items()
        }


class _Cell:
    """What has come in of one running cell."""

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


def _make_folder() -> Path:
    """A private folder: `work` is the code's, `run` holds sockets, `home` and `tmp` stand in for the user's."""
    folder = Path(tempfile.mkdtemp(prefix="jupyter-env-"))
    if len(str(folder)) > 80:  # a socket's path has at most 107 bytes
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="jupyter-env-", dir="/tmp"))
    for name in ("work", "run", "home", "tmp"):
        (folder / name).mkdir()
    (folder / "work" / "data").mkdir()
    return folder


def _copy_files(files: Mapping[str, Path], target: Path) -> None:
    for name, origin in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, path)


def _environment(folder: Path, python: str) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        **passed,
        **dict.fromkeys(_THREADS, "1"),  # hundreds of kernels share the cores
        "PATH": f"{Path(python).parent}{os.pathsep}{passed.get('PATH', os.defpath)}",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "MPLCONFIGDIR": str(_matplotlib_cache(folder)),
        "PYTHONHASHSEED": "0",  # sets print in the same order in every episode
        "PYTHONNOUSERSITE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "JPY_PARENT_PID": str(os.getpid()),  # ipykernel ends itself when the trainer is gone
        MARK: uuid.uuid4().hex,
    }


def _matplotlib_cache(folder: Path) -> Path:
    """A private copy of the user's font list: building it anew would cost each kernel's first plot a second."""
    target = folder / "home" / "matplotlib"
    target.mkdir()
    cache = Path(os.environ.get("MPLCONFIGDIR") or Path.home() / ".cache" / "matplotlib")
    for fonts in cache.glob("fontlist-*.json"):
        shutil.copyfile(fonts, target / fonts.name)
    return target


def _remove(folder: Path) -> None:
    """Delete the folder, also where the code has taken its own permissions away."""
    if folder.exists():
        folder.chmod(0o700)
        for parent, names, _ in os.walk(folder):  # from the top, so that each is opened before it is entered
            for path in (Path(parent, name) for name in names):
                if not path.is_symlink():
                    path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
