"""Forked kernels for all of Jupyter: nbclient, papermill and Jupyter Server start them as they start any kernel.

Named "jupyter-env-fork" to `jupyter_client`; a kernelspec that uses it is installed by `jupyter-env kernelspec
install`. The first kernel of a process waits for the server (about two seconds), each further one for its fork.
https://jupyter-client.readthedocs.io/en/stable/provisioning.html
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Bool, Int, List, Unicode

from .client import DEFAULT_PRELOAD, Caps
from .forked import Endpoint, Exit, ForkedKernel
from .shared import shared_server


class ForkProvisioner(KernelProvisionerBase):
    """One forked kernel; the traits are the `config` of a kernelspec's `kernel_provisioner`."""

    isolated = Bool(False, config=True, help="Give kernels namespaces and a user of their own, and no network.")
    python = Unicode(sys.executable, config=True, help="Interpreter of the kernels.")
    preload = List(Unicode(), list(DEFAULT_PRELOAD), config=True, help="Modules imported ahead.")
    work_bytes = Int(1024**3, config=True, help="Of files that an isolated kernel writes; they lie in memory.")
    memory_bytes = Int(8 * 1024**3, config=True, help="Of an isolated kernel.")
    processes = Int(256, config=True, help="Of an isolated kernel, threads too.")

    _kernel: ForkedKernel | None = None
    _ended: asyncio.Task[Exit] | None = None
    _endpoint: Endpoint | None = None

    @property
    def has_process(self) -> bool:
        """Whether it was started and not cleaned up since."""
        return self._kernel is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """The command is not used: the kernel is forked."""
        kwargs.pop("extra_arguments", None)
        return await super().pre_launch(cmd=list(self.kernel_spec.argv), **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork the kernel in the folder `cwd`, with the environment `env`.

        Raises:
            ServerError: no server or no kernel could be started.
        """
        server = await asyncio.to_thread(
            shared_server, self.python, preload=tuple(self.preload), isolated=self.isolated
        )
        caps = Caps(work_bytes=self.work_bytes, memory_bytes=self.memory_bytes, processes=self.processes)
        folder = str(kwargs["cwd"]) if kwargs.get("cwd") else None
        self._kernel = server.spawn(caps, folder=folder, env=kwargs.get("env"), endpoint=self._endpoint)
        self._endpoint = self._kernel.endpoint
        await self._kernel.ready()
        self._ended = asyncio.ensure_future(self._kernel.wait())
        connection = dict(self._endpoint.connection)
        connection["key"] = connection["key"].encode()
        return connection  # type: ignore[return-value]

    async def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self._ended is None:
            return 0
        return _code(self._ended) if self._ended.done() else None

    async def wait(self) -> int | None:
        """The exit code, once it has ended."""
        if self._ended is None:
            return 0
        await asyncio.wait({self._ended})
        return _code(self._ended)

    async def send_signal(self, signum: int) -> None:
        """SIGINT reaches the kernel's group; what would end a process ends the kernel."""
        if self._kernel is None:
            return
        if signum == signal.SIGINT:
            self._kernel.interrupt()
        elif signum == signal.SIGTERM:  # the first process of a namespace does not hear it
            self._kernel.kill()
        else:
            self._kernel.send_signal(signum)

    async def kill(self, restart: bool = False) -> None:
        """SIGKILL, and wait for the end."""
        if self._kernel is not None:
            self._kernel.kill()
            await self.wait()

    async def terminate(self, restart: bool = False) -> None:
        """As `kill`: a forked kernel's orderly end can hang."""
        await self.kill(restart)

    async def cleanup(self, restart: bool = False) -> None:
        """Let go of the process and, unless its clients are to reach the next one, of its sockets."""
        if self._kernel is not None:
            self._kernel.close(keep_endpoint=restart)
            await self.wait()
        self._kernel = self._ended = None
        if not restart:
            self._endpoint = None


def _code(ended: asyncio.Task[Exit]) -> int | None:
    """Of a kernel that ended; -SIGKILL if its server ended first and took it along."""
    return -signal.SIGKILL if ended.exception() is not None else ended.result().code
