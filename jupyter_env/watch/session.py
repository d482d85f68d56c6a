"""One episode that a browser watches: what happens in it, as events that can be read from the beginning at any time."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from jupyter_env.action import ExecuteCode, Message, parse_message
from jupyter_env.agent import AgentSettings, work
from jupyter_env.chat import Model, ModelSetupError, ModelUnavailable, Reply
from jupyter_env.episode import Budget, Episode
from jupyter_env.interpreters import InfrastructureError, Interpreter
from jupyter_env.report.shown import outcome, shown_episode
from jupyter_env.task import Task


class Event(msgspec.Struct, frozen=True):
    """Something that happened."""

    kind: str
    """`step`: a turn that is done; `state`: what goes on now; `end`."""
    data: dict[str, Any]


class Session:
    """A running or ended episode and its events.

    Args:
        task: with a `Hidden` answer: nobody here knows it.
        files: the task's tables, host path by path below `data/`.
        model: leads the episode.
        make_interpreter: as `Episode` takes it.
    """

    def __init__(
        self,
        task: Task,
        files: Mapping[str, Path],
        model: Model,
        make_interpreter: Callable[[], Interpreter],
        *,
        budget: Budget,
        settings: AgentSettings,
        agent: str,
    ) -> None:
        self.episode = Episode(
            task,
            files,
            make_interpreter,
            budget=budget,
            system_prompt=settings.system_prompt,
            require_comment=settings.require_comment,
            agent=agent,
        )
        self._model = model
        self._settings = settings
        self._events: list[Event] = []
        self._more = asyncio.Condition()
        self._steps = 0
        self._stopped = False
        self._work = asyncio.create_task(self._run())
        self._life = asyncio.create_task(self._live())

    @property
    def ended(self) -> bool:
        """Whether its last event has come."""
        return bool(self._events) and self._events[-1].kind == "end"

    async def stop(self) -> None:
        """End it now, the running cell too; after the end nothing happens."""
        if not self._stopped:  # once: closing must not be cut short
            self._stopped = True
            self._work.cancel()
        await asyncio.wait({self._life})

    async def events(self, after: int = 0, quiet_s: float = 15.0) -> AsyncIterator[tuple[int, Event | None]]:
        """Numbered events from the one after `after` to the end; None when nothing happened for `quiet_s`."""
        while True:
            async with self._more:
                if after >= len(self._events):  # a browser may name a number that never was
                    if self.ended:
                        return
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(quiet_s):
                            await self._more.wait()
                new = self._events[after:]
            if not new:
                yield after, None
            for event in new:
                after += 1
                yield after, event
                if event.kind == "end":
                    return

    async def _run(self) -> None:
        await self._tell("state", {"doing": "starting"})
        await self.episode.start()
        await work(self.episode, self._watched, self._settings)

    async def _live(self) -> None:
        """From the start to the last event, however the work ends."""
        problem = ""
        try:
            await self._work
        except asyncio.CancelledError:
            self.episode.stop()  # by the user
        except (ModelUnavailable, ModelSetupError) as error:
            problem = f"the model: {error}"
        except InfrastructureError as error:
            problem = str(error)
        except Exception:  # a defect of ours, shown rather than lost
            problem = traceback.format_exc()
        if problem:
            self.episode.fail(problem)
        try:
            await self.episode.close()
        finally:
            await self._tell_steps()
            record = self.episode.record
            end = {"outcome": outcome(record), "stop_reason": record.stop_reason, "answer": record.answer}
            await self._tell("end", {**end, "error": record.error, "duration_s": record.duration_s})

    async def _watched(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Reply:
        """The model, telling what is done before each of its turns and what it does with it."""
        await self._tell_steps()
        await self._tell("state", {"doing": "thinking"})
        reply = await self._model(messages, tools)
        action = parse_message(reply.message)
        if isinstance(action, ExecuteCode):
            await self._tell("state", {"doing": "running", "code": action.code, "comment": action.comment})
        return reply

    async def _tell_steps(self) -> None:
        steps = shown_episode(self.episode.record)["steps"]
        for step in steps[self._steps :]:
            await self._tell("step", step)
        self._steps = len(steps)

    async def _tell(self, kind: str, data: dict[str, Any]) -> None:
        async with self._more:
            self._events.append(Event(kind, data))
            self._more.notify_all()
