"""Templates of a server, made when first asked for, and kept while there is memory for them."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Mapping

from .client import Caps, ForkServer, Template
from .pool import KernelPool

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
        server.on_close(self.close)
        self._kept: OrderedDict[tuple[object, ...], tuple[Template, KernelPool]] = OrderedDict()
        self._making: dict[tuple[object, ...], asyncio.Task[tuple[Template, KernelPool]]] = {}

    async def pool(
        self, files: Mapping[str, str], setup: str, caps: Caps, *, parked: int = 0, max_live: int | None = None
    ) -> KernelPool:
        """Kernels that start with what the setup code makes of the files (see `ForkServer.template`).

        A file that has changed on disk makes another template.

        Raises:
            ServerError: the template could not be made.
        """
        stats = {name: os.stat(path) for name, path in files.items()}
        marks = tuple(sorted((name, at.st_dev, at.st_ino, at.st_mtime_ns) for name, at in stats.items()))
        key = (marks, setup, caps, parked, max_live, id(asyncio.get_running_loop()))
        found = self._kept.get(key)
        if found is None or not found[0].alive():
            self._kept.pop(key, None)
            if key not in self._making:
                self._making[key] = asyncio.ensure_future(self._make(files, setup, caps, parked, max_live))
            try:
                found = await asyncio.shield(self._making[key])
            finally:
                self._making.pop(key, None)
            self._kept[key] = found
        self._kept.move_to_end(key)
        self._make_room()
        return found[1]

    async def _make(
        self, files: Mapping[str, str], setup: str, caps: Caps, parked: int, max_live: int | None
    ) -> tuple[Template, KernelPool]:
        template = await self._server.template(files, setup)
        return template, KernelPool(template, caps, parked=parked, max_live=max_live)

    def _make_room(self) -> None:
        """Close idle templates, the longest unused first, but never the one just asked for."""
        used = sum(template.private_bytes for template, _ in self._kept.values())
        for key in list(self._kept)[:-1]:
            template, pool = self._kept[key]
            if used <= self._budget_bytes:
                return
            if pool.idle:
                template.close()
                del self._kept[key]
                used -= template.private_bytes

    def close(self) -> None:
        """Close all of them."""
        for template, _ in self._kept.values():
            template.close()
        self._kept.clear()
