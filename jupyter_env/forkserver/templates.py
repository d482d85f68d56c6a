"""Templates of a server, made when first asked for, and kept while there is memory for them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Unpack

from .client import Caps, ForkServer, Template
from .forked import ServerError
from .pool import KernelPool, PoolOptions

DEFAULT_BUDGET_BYTES = 4 * 1024**3
"""Of memory that templates do not share with their server."""


class Templates:
    """Pools over templates, by the data and the setup code; the least recently used idle ones make room.

    Args:
        server: what the templates are forked from.
        budget_bytes: kept below by closing templates that have no living kernels; one that has stays in any case.
    """

    def __init__(self, server: ForkServer, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self._server = server
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[object, ...], Future[KernelPool]] = OrderedDict()
        server.on_close(self.close)

    async def pool(
        self, files: Mapping[str, str], setup: str, caps: Caps, **options: Unpack[PoolOptions]
    ) -> KernelPool:
        """Kernels that start with what the setup code makes of the files (see `ForkServer.template`).

        From any thread and event loop: who asks while a template is being made waits for it. A file that has changed
        on disk makes another template.

        Raises:
            ServerError: the template could not be made.
        """
        options.setdefault("parked", 0)  # a template's kernels are wanted by few
        stats = {name: os.stat(path) for name, path in files.items()}
        marks = tuple(sorted((name, at.st_dev, at.st_ino, at.st_mtime_ns) for name, at in stats.items()))
        key = (marks, setup, caps, *sorted(options.items()))
        with self._lock:
            made = self._kept.get(key)
            makes_it = made is None or _has_ended(made)
            if makes_it:
                made = self._kept[key] = Future()
            self._kept.move_to_end(key)
        assert made is not None
        if makes_it:
            try:
                template = await self._server.template(files, setup)
                made.set_result(KernelPool(template, caps, **options))
            except BaseException as error:
                self._kept.pop(key, None)
                made.set_exception(error if isinstance(error, Exception) else ServerError("it was given up"))
                raise
            self._make_room()
        return await asyncio.shield(asyncio.wrap_future(made))

    def _make_room(self) -> None:
        """Close idle templates, the longest unused first, but never the one just made."""
        with self._lock:
            pools = {key: made.result() for key, made in self._kept.items() if _is_made(made)}
            used = sum(_private_bytes(pool) for pool in pools.values())
            for key in list(pools)[:-1]:
                if used <= self._budget_bytes:
                    return
                if pools[key].idle:
                    pools[key].server.close()
                    del self._kept[key]
                    used -= _private_bytes(pools[key])

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            for made in self._kept.values():
                if _is_made(made):
                    made.result().server.close()
            self._kept.clear()


def _is_made(made: Future[KernelPool]) -> bool:
    return made.done() and made.exception() is None


def _has_ended(made: Future[KernelPool]) -> bool:
    return _is_made(made) and not made.result().server.alive()


def _private_bytes(pool: KernelPool) -> int:
    assert isinstance(pool.server, Template)
    return pool.server.private_bytes
