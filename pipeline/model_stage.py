"""A stage that asks models or runs kernels: many items at a time, outcomes in the order of the items all the same."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from jupyter_env.chat import ModelSetupError, ModelUnavailable
from jupyter_env.interpreters import InfrastructureError, close_servers
from pipeline.calls import Caller, Journal
from pipeline.ledger import DONE, FAILED, REJECTED, Outcome
from pipeline.models import EndpointPool, ModelSettings
from pipeline.run_folder import RunFolder, Unit
from pipeline.serving import served
from pipeline.stage import Item, Rejected, Result, Stage, Work, is_machine_error

FAILURES_IN_A_ROW = 20
"""So many items that failed one after the other end the task: the server is gone, and no item is to blame."""


class StageStopped(RuntimeError):
    """A stage that can't go on; the message says what to do."""


class ModelStage(Stage):
    """Subclasses say what becomes of an item in `judge`, with `self.model(name)` for calls.

    At most `in_flight` items are worked on at a time. Those that end early wait for their turn to be committed, so
    that equal work gives equal ledgers, whatever the order in which replies came.
    """

    batch_items = 16
    """Replies are on the disk on their own: a kill costs no calls, only the kernels' work of a batch."""

    def __init__(self, folder: RunFolder, models: dict[str, ModelSettings], in_flight: int) -> None:
        super().__init__(folder)
        self.models, self.in_flight = models, in_flight
        self._urls: dict[str, tuple[str, ...]] = {}
        self._callers: dict[str, Caller] = {}

    @abstractmethod
    async def judge(self, item: Item) -> Any:
        """As `decide`, asynchronously."""

    def decide(self, item: Item) -> Any:
        """Not used: see `judge`."""
        raise NotImplementedError

    def model(self, name: str) -> Caller:
        """The model of this role, through the unit's journal."""
        return self._callers[name]

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Work through the units of one rank, with a server of its own where the recipe has one started."""
        if not self.units()[rank::world_size]:
            return
        logs = self.run_folder.root / "logs" / self.name
        with ExitStack() as stack:
            stack.callback(close_servers)  # of kernels
            for name, settings in self.models.items():
                log = logs / f"server-{name}-{rank:05d}.log"
                self._urls[name] = stack.enter_context(served(settings, log))
            super().run(data, rank, world_size)

    def run_unit(self, unit: Unit) -> None:
        """See `Stage.run_unit`."""
        self._unit = unit
        super().run_unit(unit)

    def outcomes(self, work: Iterator[Work]) -> Iterator[Result]:
        """What becomes of the items, in their order."""
        window: deque[asyncio.Task[Result]] = deque()
        failed = 0
        with asyncio.Runner() as runner:
            slots = asyncio.Semaphore(self.in_flight)
            opened = runner.run(self._open())
            try:
                for item, known, held in work:
                    window.append(runner.get_loop().create_task(self._judged(item, known, held, slots)))
                    if len(window) < 4 * self.in_flight:  # room to go on while the first one takes long
                        continue
                    failed = _count_failures(failed, outcome := runner.run(_result(window.popleft())))
                    yield outcome
                while window:
                    failed = _count_failures(failed, outcome := runner.run(_result(window.popleft())))
                    yield outcome
            finally:
                runner.run(self._close(opened, window))

    async def _open(self) -> tuple[Journal, list[EndpointPool]]:
        journal = Journal(self.run_folder.journal(self.name, self._unit.name))
        pools = {
            name: EndpointPool(settings, self._urls.get(name, settings.endpoints), 4 * self.in_flight)
            for name, settings in self.models.items()
        }
        self._callers = {name: Caller(pool, self.models[name], journal) for name, pool in pools.items()}
        return journal, list(pools.values())

    async def _close(self, opened: tuple[Journal, list[EndpointPool]], window: Iterable[asyncio.Task[Any]]) -> None:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)
        journal, pools = opened
        try:
            await journal.close()
        finally:
            for pool in pools:
                await pool.close()
        for name in ("requests", "prompt_tokens", "cached_tokens", "completion_tokens"):
            self.stat_update(name, value=getattr(journal.usage, name))

    async def _judged(self, item: Item, known: Outcome | None, held: Result | None, slots: asyncio.Semaphore) -> Result:
        if held is not None:
            return held
        tries = known.tries + 1 if known else 1
        async with slots:
            try:
                verdict = await self.judge(item)
            except ModelSetupError:
                raise
            except Exception as error:
                if is_machine_error(error):
                    raise
                if isinstance(error, ModelUnavailable | InfrastructureError):
                    tries = 1  # no fault of the item: later runs try it again, however often
                return Outcome(item.id, item.key, FAILED, f"{type(error).__name__}: {error}"[:500], tries=tries), None
        if isinstance(verdict, Rejected):
            return Outcome(item.id, item.key, REJECTED, verdict.reason, verdict.detail[:500], tries), None
        return Outcome(item.id, item.key, DONE, tries=tries), verdict


async def _result(task: asyncio.Task[Result]) -> Result:
    return await task


def _count_failures(before: int, outcome: Result) -> int:
    if outcome[0].state != FAILED:
        return 0
    if before + 1 >= FAILURES_IN_A_ROW:
        raise StageStopped(
            f"the last {before + 1} items all failed, the last with: {outcome[0].reason}. Mend the cause and run "
            "again: replies that came are kept"
        )
    return before + 1
