"""For TRL's own loop, `GRPOTrainer(environment_factory=trl_environment(pool), ...)`: two tools and a reward.

TRL 1.16 makes every public method of an environment a tool, asks tools one after another (a batch whose cells take
0.25 s waits 0.25 s for each), goes on after `final_answer`, ends an episode without a word on a malformed call, has
one limit of tokens for a turn and an episode, and closes nothing. What of that an environment can mend is mended here:
after the answer every call is told that the work is over, kernels are those of a pool and end with the process. The
rest needs rollouts of our own: docs/grpo.md.
"""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from jupyter_env.blocking import LoopThread
from jupyter_env.episode import Budget, Episode
from jupyter_env.interpreters import InfrastructureError, KernelSettings, make_kernel
from jupyter_env.task import TaskPool

_OVER = "The work has ended: the answer was given, or a limit was reached. Write no further call."


def trl_environment(
    pool: TaskPool,
    *,
    budget: Budget = Budget(),  # noqa: B008
    kernel: KernelSettings = KernelSettings(),  # noqa: B008
) -> Callable[[], TrlEnvironment]:
    """The `environment_factory`. The data set's rows have a column `task_id` beside their `prompt`."""
    return partial(TrlEnvironment, pool, budget, kernel)


def trl_rows(pool: TaskPool) -> list[dict[str, Any]]:
    """Rows for `datasets.Dataset.from_list`: each task's system prompt and question, and its id."""
    rows = []
    for task in pool:
        episode = Episode(task, {file.path: pool.file_path(file) for file in task.files}, make_kernel)
        rows.append({"prompt": list(episode.messages), "task_id": task.id})
    return rows


class TrlEnvironment:
    """One rollout's environment at a time; TRL resets it for the next. Its public methods are the tools."""

    def __init__(self, pool: TaskPool, budget: Budget, kernel: KernelSettings) -> None:
        self._pool, self._budget, self._kernel = pool, budget, kernel
        self._running = _Running()
        weakref.finalize(self, self._running.close)  # at exit too; TRL closes nothing

    def reset(self, **row: Any) -> None:
        """Start the row's task on a fresh kernel; the prompt asks the question already.

        Raises:
            TaskError: the row has no `task_id`, or there is no such task.
        """
        task = self._pool.get(row.get("task_id", ""))
        self._running.end()
        episode = Episode(
            task,
            {file.path: self._pool.file_path(file) for file in task.files},
            partial(make_kernel, self._kernel),
            budget=self._budget,
            on_infrastructure_error="nan",
        )
        self._running.begin(episode)

    def execute_code(self, code: str) -> str:
        """Run a code cell in the notebook and read its output.

        Args:
            code: Python code of the cell. Variables of earlier cells are still there.

        Returns:
            The cell's output.
        """
        return self._call("execute_code", {"code": code})

    def final_answer(self, answer: str) -> str:
        """Give the answer to the question. This ends the work.

        Args:
            answer: Only the answer, written as the guidelines ask.

        Returns:
            That it was taken.
        """
        return self._call("final_answer", {"answer": answer})

    def get_reward(self) -> float | None:
        """The verdict's score; 0 without an answer, None where the machine failed."""
        record = self._running.record
        if record is None or record.stop_reason == "infrastructure_error":
            return None
        reward = record.reward
        return 0.0 if reward is None or math.isnan(reward) else reward

    def _call(self, name: str, arguments: dict[str, str]) -> str:
        function = {"name": name, "arguments": json.dumps(arguments)}
        message = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        return self._running.step(message)


class _Running:
    """The episode and the thread that it runs in, apart from the environment, so that they can outlive it."""

    def __init__(self) -> None:
        self._episode: Episode | None = None
        self._loop: LoopThread | None = None

    @property
    def record(self) -> Any:
        return self._episode.record if self._episode is not None else None

    def begin(self, episode: Episode) -> None:
        self._loop = self._loop or LoopThread()
        self._episode = episode
        self._loop.run(episode.start())

    def step(self, message: dict[str, Any]) -> str:
        if self._episode is None or self._loop is None or self._episode.done:
            return _OVER
        try:
            step = self._loop.run(self._episode.step(message))
        except InfrastructureError as error:
            return f"The notebook is not there: {error}"
        if not self._episode.done:
            return step.observation
        self._loop.run(self._episode.close())  # its kernel is needed no more
        return _OVER if step.terminated else f"{step.observation}\n{_OVER}".strip()

    def end(self) -> None:
        if self._episode is not None and self._loop is not None:
            self._loop.run(self._episode.close())
        self._episode = None

    def close(self) -> None:
        self.end()
        if self._loop is not None:
            self._loop.close()
            self._loop = None
