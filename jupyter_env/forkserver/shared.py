"""The servers of this process: one for each kind, started when first needed, ended at exit."""

from __future__ import annotations

import atexit
import os
import threading

from .client import DEFAULT_PRELOAD, ForkServer

_lock = threading.Lock()
_servers: dict[tuple[object, ...], ForkServer] = {}


def shared_server(
    python: str, *, preload: tuple[str, ...] = DEFAULT_PRELOAD, isolated: bool, threads: int = 1, gpu: bool = False
) -> ForkServer:
    """The server of this kind (see `ForkServer`); starting it takes about two seconds.

    One that has died is replaced. A forked child of this process gets its own.

    Raises:
        ServerError: it does not start.
    """
    key = (os.getpid(), python, preload, isolated, threads, gpu)
    with _lock:
        server = _servers.get(key)
        if server is None or not server.alive():
            if server is not None:
                server.close()
            server = _servers[key] = ForkServer(
                python=python, preload=preload, isolated=isolated, threads=threads, gpu=gpu
            )
        return server


@atexit.register
def close_servers() -> None:
    """End the servers of this process and with them their kernels; who needs one later starts it anew."""
    with _lock:
        for (pid, *_), server in _servers.items():
            if pid == os.getpid():
                server.close()
        _servers.clear()
