"""The isolated kernel: a fork of a server with the libraries loaded, in namespaces of its own.

It starts in tens of milliseconds, sees nothing of the host but its Python, its data (read-only) and a private folder
in memory, has no network, and dies whole. Behind it is `jupyter_env.forkserver`.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jupyter_env.forkserver.client import ForkedKernel, ForkServer, ServerError, View
from jupyter_env.forkserver.isolation import detect
from jupyter_env.interpreters.base import InfrastructureError, Interpreter
from jupyter_env.interpreters.kernel import KernelSettings, LocalKernel
from jupyter_env.interpreters.process import Process


class IsolatedKernel(LocalKernel):
    """An `Interpreter` over a kernel forked from a shared server."""

    _forked: ForkedKernel | None = None

    async def _launch(self, files: Mapping[str, Path]) -> tuple[Process, str]:
        """Fork a kernel; the files are mounted read-only, so nothing is copied."""
        settings = self._settings
        view = View(
            files={name: str(path) for name, path in files.items()},
            work_bytes=settings.max_work_bytes,
            memory_bytes=settings.max_memory_bytes,
            processes=settings.max_processes,
        )
        try:
            self._forked = await shared_server(settings.python).spawn(view)
        except ServerError as error:
            raise InfrastructureError(str(error)) from error
        return self._forked, self._forked.connection_file

    def _why_not_started(self) -> str:
        return f"the forked kernel did not answer within {self._settings.start_timeout_s:g} s"

    async def close(self) -> None:
        """See `Interpreter.close`."""
        await super().close()
        if self._forked is not None:
            self._forked.close()
            self._forked = None


_servers: dict[tuple[int, str], ForkServer] = {}


def shared_server(python: str) -> ForkServer:
    """The server of this process for a Python, started when first needed and ended at exit.

    A server that has died is replaced; a forked child of the trainer gets one of its own.

    Raises:
        ServerError: it does not start.
    """
    key = (os.getpid(), python)
    server = _servers.get(key)
    if server is None or not server.alive():
        if server is not None:
            server.close()
        server = _servers[key] = ForkServer(python=python)
        atexit.register(_close_at_exit, server, os.getpid())
    return server


def _close_at_exit(server: ForkServer, pid: int) -> None:
    if os.getpid() == pid:
        server.close()


def make_kernel(settings: KernelSettings = KernelSettings()) -> Interpreter:  # noqa: B008
    """The kernel that the settings and this host give: isolated where possible, else local.

    Raises:
        InfrastructureError: isolation is "strict", and the host does not give all of it.
    """
    if settings.isolation == "none":
        return LocalKernel(settings)
    missing = _missing()
    if settings.isolation == "strict" and missing:
        raise InfrastructureError(f"this host does not isolate kernels fully: {missing}")
    if _essential_missing():
        _warn_once(missing)
        return LocalKernel(settings)
    return IsolatedKernel(settings)


@cache
def _features() -> dict[str, str]:
    return detect()


def _missing() -> str:
    return "; ".join(f"{feature}: {problem}" for feature, problem in _features().items() if problem)


def _essential_missing() -> bool:
    """Without namespaces there is no view to give; without a user of its own or seccomp there still is."""
    return sys.platform != "linux" or any(
        problem for feature, problem in _features().items() if feature not in ("own user", "seccomp")
    )


@cache
def _warn_once(missing: str) -> None:
    warnings.warn(f"kernels are not isolated on this host ({missing}); see docs/security.md", stacklevel=3)
