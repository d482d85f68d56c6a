"""A kernel's operating-system process: started in a session of its own, awaited without a thread, killed whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from jupyter_env.forkserver.forked import Exit

MARK = "JUPYTER_ENV_KERNEL"
"""Environment variable that marks a kernel and all its descendants, so that daemons that left its session are found."""


class Process(Protocol):
    """What a kernel needs of its process."""

    pid: int

    async def wait(self) -> Exit:
        """How it ended, once it has."""

    def interrupt(self) -> None:
        """SIGINT."""

    def kill(self) -> None:
        """SIGKILL, with everything that it started."""


class KernelProcess:
    """One kernel process with everything that it starts.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, stderr: Path, max_memory_bytes: int
    ) -> None:
        self._mark = env[MARK]
        with stderr.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # a group of its own, and no Ctrl-C from the trainer's terminal
            )
        self.pid = self._process.pid
        if sys.platform == "linux":
            _limit_memory(self.pid, max_memory_bytes)

    async def wait(self) -> Exit:
        """See `Process.wait`."""
        pidfd = _open_pidfd(self.pid) if self._process.poll() is None else None
        if pidfd is None:
            while (code := self._process.poll()) is None:  # noqa: ASYNC110 (there is nothing to await)
                await asyncio.sleep(0.05)
            return Exit(code, out_of_memory=False)
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        loop.add_reader(pidfd, _resolve, ended)
        try:
            await ended
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return Exit(self._process.wait(), out_of_memory=False)

    def interrupt(self) -> None:
        """SIGINT to the kernel and its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.poll() is None:
                os.killpg(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL the group and every descendant, also those in other sessions, and reap the kernel."""
        stray = self._descendants()
        for _ in range(3):  # a process may fork between being found and being killed
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            stray += self._strays()
            for process in stray:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if not stray:
                break
            stray = []
        self._process.wait()

    def _descendants(self) -> list[psutil.Process]:
        """Those that a living kernel still has, marked or not."""
        with contextlib.suppress(psutil.Error):
            if self._process.poll() is None:
                return psutil.Process(self.pid).children(recursive=True)
        return []

    def _strays(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if process.pid != self.pid and self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        if sys.platform == "linux":
            try:
                # The raw file: psutil would parse it, at five times the cost, for each process of the machine.
                environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            except OSError:
                return False
            return f"{MARK}={self._mark}".encode() in environment
        try:
            return process.environ().get(MARK) == self._mark
        except psutil.Error:
            return False


def _resolve(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _limit_memory(pid: int, max_memory_bytes: int) -> None:
    """Cap what the process may allocate, from outside: no Python runs between fork and exec."""
    import resource

    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_DATA, (max_memory_bytes, max_memory_bytes))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
