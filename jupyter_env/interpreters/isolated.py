"""The isolated kernel: a fork of a server with the libraries loaded, in namespaces of its own.

It starts in milliseconds, sees nothing of the host but its Python, its data (read-only) and a private folder in
memory, has no network, and dies whole. Behind it is `jupyter_env.forkserver`.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jupyter_env.forkserver.client import Caps, ForkServer
from jupyter_env.forkserver.detect import Feature, features
from jupyter_env.forkserver.forked import ForkedKernel, ServerError
from jupyter_env.forkserver.pool import KernelPool, PoolOptions
from jupyter_env.forkserver.shared import shared_server
from jupyter_env.forkserver.templates import Templates
from jupyter_env.interpreters.base import BranchError, InfrastructureError, Interpreter
from jupyter_env.interpreters.channels import Channels
from jupyter_env.interpreters.kernel import JupyterKernel
from jupyter_env.interpreters.local import LocalKernel
from jupyter_env.interpreters.process import Process
from jupyter_env.interpreters.settings import KernelSettings


class IsolatedKernel(JupyterKernel):
    """An `Interpreter` over a kernel forked from a shared server."""

    _forked: ForkedKernel | None = None

    async def _launch(self, files: Mapping[str, Path]) -> tuple[Process, dict[str, Any]]:
        """Claim a kernel; the files are mounted read-only, so nothing is copied."""
        try:
            shown = {name: str(path) for name, path in files.items()}
            pool = await shared_pool(self._settings, shown)
            self._forked = await pool.claim(shown)
        except ServerError as error:
            raise InfrastructureError(str(error)) from error
        return self._forked, self._forked.endpoint.connection

    async def _handshake(self, channels: Channels) -> None:
        await channels.wait_until_heard()

    def _why_not_started(self) -> str:
        return f"the forked kernel did not answer within {self._settings.start_timeout_s:g} s"

    async def branch(self) -> IsolatedKernel:
        """See `Interpreter.branch`: variables, open generators and the kernel's files; data files stay shared.

        Needs `KernelSettings.branchable`. Threads, processes and tasks that the code has started are an obstacle.
        Branches of one kernel share its user and its process namespace: they can signal each other.
        """
        if self._forked is None or self._exit is None or self._exit.done():
            raise BranchError("the kernel is not running")
        branch = IsolatedKernel(self._settings)
        try:
            branch._process = branch._forked = await self._forked.branch()
        except (ServerError, TimeoutError) as error:
            raise BranchError(str(error) or "the kernel did not answer") from error
        branch._channels = Channels(branch._forked.endpoint.connection)
        await branch._until_ready()
        return branch

    async def close(self) -> None:
        """See `Interpreter.close`."""
        await super().close()
        if self._forked is not None:
            self._forked.close()
            self._forked = None


_pools: dict[tuple[object, ...], KernelPool] = {}
_templates: dict[ForkServer, Templates] = {}


async def shared_pool(settings: KernelSettings, files: Mapping[str, str]) -> KernelPool:
    """The pool of this process for these settings, and for these files if there is setup code.

    Raises:
        ServerError: its server does not start, or its template could not be made.
    """
    if settings.setup:
        server = await _server(settings)
        if server not in _templates:
            _templates[server] = Templates(server)
            server.on_close(lambda: _templates.pop(server, None))
        return await _templates[server].pool(files, settings.setup, _caps(settings), **_pool_options(settings))
    pool = _pools.get(_key(settings))
    if pool is not None and pool.server.alive():
        return pool
    server = await _server(settings)
    pool = _pools.get(_key(settings))
    if pool is None or pool.server is not server:  # another may have come first
        pool = _pools[_key(settings)] = KernelPool(server, _caps(settings), **_pool_options(settings))
    return pool


async def _server(settings: KernelSettings) -> ForkServer:
    return await asyncio.to_thread(
        shared_server, settings.python, isolated=True, threads=settings.threads, gpu=settings.gpu
    )


def _caps(settings: KernelSettings) -> Caps:
    return Caps(
        work_bytes=settings.max_work_bytes,
        memory_bytes=settings.max_memory_bytes,
        processes=settings.max_processes,
        branchable=settings.branchable,
    )


def _pool_options(settings: KernelSettings) -> PoolOptions:
    return {"parked": settings.parked, "max_live": settings.max_live, "refill_after_s": settings.refill_after_s}


def _key(settings: KernelSettings) -> tuple[object, ...]:
    caps = (settings.max_work_bytes, settings.max_memory_bytes, settings.max_processes, settings.branchable)
    options = tuple(_pool_options(settings).values())
    return (os.getpid(), settings.python, settings.threads, settings.gpu, *caps, *options)


def make_kernel(settings: KernelSettings = KernelSettings()) -> Interpreter:  # noqa: B008
    """The kernel that the settings and this host give: isolated where possible, else local.

    Raises:
        InfrastructureError: isolation is "strict", and the host does not give all of it.
    """
    if settings.isolation == "none":
        return LocalKernel(settings)
    missing = [feature for feature in features() if feature.problem]
    if settings.isolation == "strict" and any(feature.name != "control groups" for feature in missing):
        raise InfrastructureError(
            f"this host does not isolate kernels fully: {_listed(missing)}; see `jupyter-env doctor`"
        )
    if any(feature.required for feature in missing):
        _warn_once(_listed(missing))
        return LocalKernel(settings)
    return IsolatedKernel(settings)


def _listed(missing: list[Feature]) -> str:
    return "; ".join(f"{feature.name}: {feature.problem}" for feature in missing)


@cache
def _warn_once(missing: str) -> None:
    warnings.warn(f"kernels are not isolated on this host ({missing}); see `jupyter-env doctor`", stacklevel=3)
