"""The Gymnasium face of an episode: text in, text out."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

from jupyter_env.action import Message, Parser, parse_message, tool_schemas
from jupyter_env.blocking import LoopThread
from jupyter_env.chat import Model
from jupyter_env.episode import SYSTEM_PROMPT, Budget, Episode, EpisodeRecord, OnInfrastructureError, Step
from jupyter_env.interpreters import Interpreter, KernelSettings, make_kernel
from jupyter_env.missing import MissingData, check_choice, workplace
from jupyter_env.task import Task, TaskDataError, TaskError, TaskPool

Result = TypeVar("Result")

MAX_TEXT_CHARS = 1 << 25
"""Bound of both spaces; far above what budgets let through."""


class AnyText(Text):
    """A `Text` space that holds any Unicode text: gymnasium's own refuses characters outside a fixed set."""

    def __init__(self) -> None:
        super().__init__(max_length=MAX_TEXT_CHARS, min_length=0)

    def contains(self, x: Any) -> bool:
        """Whether x is text of at most `MAX_TEXT_CHARS`."""
        return isinstance(x, str) and len(x) <= MAX_TEXT_CHARS

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A short random text: the space's own lengths would make megabytes."""
        length = int(self.np_random.integers(0, 100))
        return "".join(self.np_random.choice(list(self.character_list), size=length)) if length else ""


class _Running:
    """The episode that runs and the thread it runs in: what must be closed even if the environment is forgotten."""

    def __init__(self, simulator: Model | None) -> None:
        self.episode: Episode | None = None
        self._simulator = simulator
        self._loop: LoopThread | None = None

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        if self._loop is None:  # not at construction: vector envs fork after that, and threads do not survive a fork
            self._loop = LoopThread()
        return self._loop.run(work)

    def end_episode(self) -> None:
        if self.episode is not None and self._loop is not None:
            self._loop.run(self.episode.close())

    def close(self) -> None:
        self.end_episode()
        if self._loop is not None:
            if (close := getattr(self._simulator, "close", None)) is not None:  # its connections are this loop's
                self._loop.run(close())
            self._loop.close()
            self._loop = None


class JupyterQAEnv(gymnasium.Env[str, str]):
    """Questions about data, answered by running code in a Jupyter kernel; the verified answer is the reward.

    An action is the model's message as text (a tool call; see `jupyter_env.action`), an observation what the model
    reads next. Terminated: an answer was given; the reward is then 1.0 or 0.0. Truncated: a budget is spent or the
    kernel is lost, with 0.0. A failure of the machine is neither; see `on_infrastructure_error`.

    In `AsyncVectorEnv` pass `shared_memory=False`: gymnasium cannot share text of any Unicode (it would return
    '000...').

    Args:
        task_pool: the tasks; `reset` draws one by weight.
        budget: turn, time and output limits of an episode.
        kernel: how the kernel is started and isolated, and what it may use.
        make_interpreter: another interpreter in place of the kernel.
        on_infrastructure_error: "retry" (once, on a fresh kernel, replaying the cells; then raise), "raise", or
            "nan" (truncated, with a reward that is not a number).
        missing_data: what a task is whose tables are missing: "error" raises TaskDataError at `reset`; "skip" draws
            another and counts it in `skipped`; "simulate" has the simulator invent the outputs. Such an episode has
            `info["simulated"]` and the provenance "simulated".
        simulator: a model for "simulate", such as `models.server.ServerModel`. It is used from this environment's
            event loop, and closed with it if it has connections to close.
        system_prompt: the first message of `messages`.
        require_comment: makes `comment` of execute_code required.
        parser: from the model's message to an action.
        render_mode: "ansi" makes `render` return the conversation as text.

    Raises:
        TaskError: the pool is empty.
        ValueError: an argument has none of its values.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (gymnasium declares it so)

    def __init__(
        self,
        task_pool: TaskPool | Sequence[Task],
        *,
        budget: Budget = Budget(),  # noqa: B008
        kernel: KernelSettings = KernelSettings(),  # noqa: B008
        make_interpreter: Callable[[], Interpreter] | None = None,
        on_infrastructure_error: OnInfrastructureError = "retry",
        missing_data: MissingData = "error",
        simulator: Model | None = None,
        system_prompt: str = SYSTEM_PROMPT,
        require_comment: bool = False,
        parser: Parser = parse_message,
        render_mode: str | None = None,
    ) -> None:
        if isinstance(task_pool, str):
            raise TypeError(f"`task_pool` is a pool, not its path: use TaskPool.load({task_pool!r})")
        self.task_pool = task_pool if isinstance(task_pool, TaskPool) else TaskPool(task_pool)
        if not any(task.weight > 0 for task in self.task_pool):
            raise TaskError("the pool is empty, or no task has a weight above 0; there is nothing to draw")
        if on_infrastructure_error not in ("retry", "raise", "nan"):
            raise ValueError(f'`on_infrastructure_error` is "retry", "raise" or "nan", got {on_infrastructure_error!r}')
        check_choice(missing_data, simulator)
        self.skipped: Counter[str] = Counter()
        """How often each task was drawn and left, for want of its tables."""
        self._missing_data = missing_data
        self._simulator = simulator
        self.budget = budget
        self.system_prompt = system_prompt
        self.tools = tool_schemas(require_comment)
        self.render_mode = render_mode
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self._make_interpreter = make_interpreter or (lambda: make_kernel(kernel))
        self._on_infrastructure_error = on_infrastructure_error
        self._require_comment = require_comment
        self._parser = parser
        self._resets = 0  # numbers the episodes, so that the ids of their records differ
        self._running = _Running(simulator)
        # At exit and at garbage collection alike; a `__del__` would run when threads are gone already.
        weakref.finalize(self, self._running.close)

    @property
    def messages(self) -> list[Message]:
        """The conversation of the current episode, for trainers that render it themselves."""
        return self._current().messages

    @property
    def record(self) -> EpisodeRecord:
        """The record of the current or last episode."""
        return self._current().record

    def _current(self) -> Episode:
        if self._running.episode is None:
            raise ResetNeeded("call reset() first: there is no episode yet")
        return self._running.episode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode on a fresh kernel.

        Args:
            seed: fixes the tasks that this and later resets draw; 0 or above.
            options: `{"task_id": id}` names the task instead.

        Returns:
            The question with its guidelines and files, and an info with `task_id`, `level` and `dataset`.

        Raises:
            TaskError: no such task, an option that does not exist, or no task has its tables and the others are
                to be skipped.
            TaskDataError: a table of the task is missing (see `missing_data`) or changed.
            InfrastructureError: no kernel could be started.
        """
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64):
            raise ValueError(f"`seed` is a whole number from 0 to 2**64 - 1, got {seed!r}")
        super().reset(seed=seed)
        self._running.end_episode()
        task = self._choose(options or {})
        files, make_interpreter = workplace(task, self.task_pool, self._make_interpreter, self._simulator)
        episode = Episode(
            task,
            files,
            make_interpreter,
            budget=self.budget,
            system_prompt=self.system_prompt,
            require_comment=self._require_comment,
            parser=self._parser,
            on_infrastructure_error=self._on_infrastructure_error,
            seed=self._resets,
        )
        self._resets += 1
        self._running.episode = episode
        observation = self._running.run(episode.start())
        return observation, {"task_id": task.id, "level": task.level, "dataset": task.dataset}

    def _choose(self, options: dict[str, Any]) -> Task:
        if unknown := set(options) - {"task_id"}:
            raise TaskError(f"the options of reset are `task_id`, not {sorted(unknown)}")
        if "task_id" in options:
            return self.task_pool.get(options["task_id"])
        # What is skipped is not remembered: the same seed draws the same tasks, whatever was drawn before.
        weights = [task.weight for task in self.task_pool]
        while (total := sum(weights)) > 0:
            drawn = int(self.np_random.choice(len(weights), p=[weight / total for weight in weights]))
            task = self.task_pool[drawn]
            if self._missing_data != "skip" or not self.task_pool.missing(task):
                return task
            self.skipped[task.id] += 1
            weights[drawn] = 0.0
        raise TaskDataError(f"the tables of all {len(weights)} tasks are missing below {self.task_pool.data_root}")

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take the model's message.

        Returns:
            Observation, reward, terminated, truncated, and an info with `task_id`, `turn`, `status`, `stop_reason`
            and `simulated`; after the end also `answer` and the verdict's `reason`.

        Raises:
            TypeError: the action is no text.
            ResetNeeded: there is no running episode.
            InfrastructureError: the machine failed; see `on_infrastructure_error`.
        """
        if not isinstance(action, str):
            raise TypeError(f"an action is the model's message as text, got {type(action).__name__}")
        episode = self._current()
        if episode.done:
            raise ResetNeeded("the episode has ended; call reset()")
        step = self._running.run(episode.step(str(action)))
        return step.observation, step.reward, step.terminated, step.truncated, self._info(episode, step)

    def _info(self, episode: Episode, step: Step) -> dict[str, Any]:
        """Deterministic: no times and no random ids, so that equal episodes have equal infos."""
        record = episode.record
        info: dict[str, Any] = {
            "task_id": record.task_id,
            "turn": record.turns,
            "status": step.status,
            "stop_reason": record.stop_reason,
            "simulated": record.provenance == "simulated",
        }
        if record.verdict is not None:
            info |= {"answer": record.answer, "reason": record.verdict.reason}
        return info

    def render(self) -> str | None:
        """The conversation as text in render mode "ansi", else None."""
        if self.render_mode is None:
            return None
        return "\n\n".join(f"[{message['role']}]\n{_shown(message)}" for message in self.messages)

    def close(self) -> None:
        """End the episode, its kernel and this environment's thread; `reset` would start them again."""
        self._running.close()


def _shown(message: Message) -> str:
    calls = [call["function"] for call in message.get("tool_calls") or []]
    lines = [str(message.get("content") or ""), *("\n".join(map(str, call["arguments"].values())) for call in calls)]
    return "\n".join(line for line in lines if line)
