"""Kernels started ahead of need, and a bound on how many live at once.

A parked kernel is complete but for its data: claiming it takes a mount, and its successor starts while it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TypedDict

import psutil

from .client import Caps, KernelSource
from .forked import ForkedKernel, ServerError, ServerFullError

_KERNEL_BYTES = 24 * 1024**2
"""What an idle kernel costs, with room for small tables; for the default bound."""
_RETRY_S = 0.25
REFILL_AFTER_S = 0.01


class PoolOptions(TypedDict, total=False):
    """Of a `KernelPool`; see there."""

    parked: int
    max_live: int | None
    refill_after_s: float


class KernelPool:
    """Kernels of one server with equal caps, from any thread and event loop.

    Args:
        server: where they are forked.
        caps: of each.
        parked: how many to keep ready; each costs what an idle kernel does.
        max_live: claimed kernels at a time; further claims wait for one to be closed. Default: what fits in the
            memory that is free now, as idle kernels.
        refill_after_s: from a claim to the start of its successor.
    """

    def __init__(
        self,
        server: KernelSource,
        caps: Caps,
        *,
        parked: int = 1,
        max_live: int | None = None,
        refill_after_s: float = REFILL_AFTER_S,
    ) -> None:
        self.server = server
        self.max_live = max_live or _default_max_live()
        self._caps = caps
        self._target = parked
        self._refill_after_s = refill_after_s
        self._lock = threading.Lock()
        self._parked: deque[ForkedKernel] = deque()
        self._live = 0
        self._waiting: deque[Future[None]] = deque()
        server.on_close(self.close)

    @property
    def idle(self) -> bool:
        """Whether no claimed kernel lives."""
        return self._live == 0

    async def claim(self, files: Mapping[str, str]) -> ForkedKernel:
        """A kernel with the host files at `data/<name>`; parked if there is one, else started now.

        Waits while the machine is full. A parked kernel that has died is passed over.

        Raises:
            ServerError: none could be started, or a file is not there.
        """
        await self._take_place()
        try:
            kernel = await self._ready_kernel()
            kernel.on_close(self._give_place)
        except BaseException:
            self._give_place()
            raise
        try:
            await kernel.attach(files)
            # Later, so that the server's next fork keeps no one waiting for this kernel.
            asyncio.get_running_loop().call_later(self._refill_after_s, self._refill_if_open)
        except BaseException:
            kernel.close()
            raise
        return kernel

    async def _ready_kernel(self) -> ForkedKernel:
        while True:
            kernel = self._next()
            try:
                await kernel.ready()
                return kernel
            except ServerFullError:
                if self._live <= 1:  # there is no other whose end would make room
                    raise
                await asyncio.sleep(_RETRY_S)

    def _next(self) -> ForkedKernel:
        """The parked one that started first, or a new one."""
        while True:
            with self._lock:
                kernel = self._parked.popleft() if self._parked else None
            if kernel is None:
                return self.server.spawn(self._caps, lean=True)
            try:
                kernel.take_news()
                return kernel
            except ServerError:
                kernel.close()

    def refill(self) -> None:
        """Start what is missing of the kernels to keep ready; returns at once."""
        with self._lock:
            missing = min(self._target - len(self._parked), self.max_live - self._live)
            self._parked.extend(self.server.spawn(self._caps, lean=True) for _ in range(missing))

    def _refill_if_open(self) -> None:
        with contextlib.suppress(ServerError):  # the next claim says so
            self.refill()

    def close(self) -> None:
        """Close the parked kernels; claimed ones live on."""
        with self._lock:
            self._target = 0
            parked = [self._parked.popleft() for _ in range(len(self._parked))]
        for kernel in parked:
            kernel.close()

    async def _take_place(self) -> None:
        with self._lock:
            if self._live < self.max_live:
                self._live += 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        try:
            await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            if not turn.cancel():  # the turn came together with the cancellation
                self._give_place()
            raise

    def _give_place(self) -> None:
        """Hand the place of a closed kernel to who waits longest."""
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._live -= 1


def _default_max_live() -> int:
    return max(psutil.virtual_memory().available // _KERNEL_BYTES, 1)
