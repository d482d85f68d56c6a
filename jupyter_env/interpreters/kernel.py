"""A Jupyter kernel as an interpreter: cells in, outputs out, whatever the code does. How it is started is its
subclasses' part (`LocalKernel`, `IsolatedKernel`)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_env.forkserver.forked import Exit
from jupyter_env.interpreters.base import BranchError, CellResult, InfrastructureError, Status
from jupyter_env.interpreters.cell import CellOutputs
from jupyter_env.interpreters.channels import Channels
from jupyter_env.interpreters.output import render_outputs
from jupyter_env.interpreters.process import Process
from jupyter_env.interpreters.settings import KernelSettings

_LAST_OUTPUT_S = 1.0
"""How long to wait for outputs still under way after the reply, when a flood has cost the last message."""


class JupyterKernel:
    """An `Interpreter` over one kernel process and its sockets."""

    simulated = False

    def __init__(self, settings: KernelSettings = KernelSettings()) -> None:  # noqa: B008
        self._settings = settings
        self._process: Process | None = None
        self._channels: Channels | None = None
        self._exit: asyncio.Task[Exit] | None = None

    @property
    def pid(self) -> int | None:
        """Of the kernel process; None before the start and after the end."""
        return self._process.pid if self._process else None

    async def start(self, files: Mapping[str, Path]) -> None:
        """See `Interpreter.start`."""
        try:
            self._process, connection = await self._launch(files)
            self._channels = Channels(connection)
        except OSError as error:
            await self.close()
            raise InfrastructureError(f"the kernel could not be started: {error}") from error
        await self._until_ready()

    async def _until_ready(self) -> None:
        """Watch the process, and return when it answers."""
        assert self._process is not None and self._channels is not None
        self._exit = asyncio.ensure_future(self._process.wait())
        ready = asyncio.ensure_future(self._handshake(self._channels))
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

    async def _handshake(self, channels: Channels) -> None:
        await channels.wait_until_ready()

    async def _launch(self, files: Mapping[str, Path]) -> tuple[Process, dict[str, Any]]:
        """Start the process with the files at `data/`; returns it with its connection.

        Raises:
            OSError, InfrastructureError: it cannot be started.
        """
        raise NotImplementedError

    def _why_not_started(self) -> str:
        """What to say when it did not answer in time."""
        raise NotImplementedError

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
        cell = CellOutputs(request_id, self._settings.max_output_bytes)
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

    async def _await_end(self, cell: CellOutputs, reading: asyncio.Task[None], timeout_s: float) -> tuple[Status, str]:
        """Wait for the reply, the process's exit and the deadline at once."""
        assert self._exit is not None
        await asyncio.wait({reading, self._exit}, timeout=timeout_s, return_when="FIRST_COMPLETED")
        if reading.done():
            reading.result()
            return cell.status(), ""
        if self._exit.done():
            if self._exit.exception() is not None:
                return "infrastructure_error", str(self._exit.exception())
            return self._died(self._exit.result())
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

    def _died(self, ended: Exit) -> tuple[Status, str]:
        if ended.out_of_memory:
            limit = f"{self._settings.max_memory_bytes / 1e9:.3g} GB"
            return (
                "out_of_memory",
                f"The kernel was killed: it used more than {limit} of memory. All variables are lost.",
            )
        return "kernel_died", f"The kernel died ({exit_text(ended)}). All variables are lost."

    async def _read(self, cell: CellOutputs) -> None:
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

    async def _read_outputs(self, cell: CellOutputs) -> None:
        assert self._channels is not None
        while not cell.idle:
            message = await self._channels.receive(self._channels.iopub)
            if message and message.parent_id == cell.request_id:
                cell.take(message)

    async def branch(self) -> JupyterKernel:
        """See `Interpreter.branch`; isolated kernels can be branched."""
        raise BranchError("this kernel cannot be branched; isolated ones started as `branchable` can")

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
        self._channels = self._process = None


def exit_text(ended: Exit) -> str:
    """An exit code, or the signal's name."""
    code = ended.code
    if code is None:
        return "it was a branch, whose exit code is not known"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
