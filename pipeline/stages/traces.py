"""Stage 10: a teacher works on each question in a notebook of its own, k times; all is kept, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from jupyter_env.action import Message
from jupyter_env.agent import AgentSettings, agent_settings
from jupyter_env.chat import Model, ModelUnavailable, Reply, Usage
from jupyter_env.episode import Budget, EpisodeRecord
from jupyter_env.interpreters import InfrastructureError, KernelSettings, make_kernel
from jupyter_env.interpreters.simulated import UNAVAILABLE, UNUSABLE
from jupyter_env.rollout import Job, run_episode
from jupyter_env.task import Task, TaskPool
from pipeline.model_stage import ModelStage
from pipeline.models import ModelSettings
from pipeline.run_folder import RunFolder
from pipeline.stage import Item, Rejected, Row

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("notebook", pa.string()),
        ("task", pa.string()),
        ("records", pa.string()),
        ("attempts", pa.int32()),
    ]
)

MACHINE_RETRIES = 2
"""Of an attempt that the machine failed, at once; after that the question waits for the next run."""


class _SimulatorFailed(Exception):
    """It answered, to no use; the journal would answer the same requests with the same replies."""


class TraceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the teacher works."""

    attempts: int = 2
    """Episodes on each question."""
    prompt: str = "code"
    """Of `jupyter_env/prompts`: `code` has the comment required, for models that call tools without a word; `thinking`
    is for those that think."""
    max_turns: int = 25
    cell_timeout_s: float = 60.0
    total_cell_s: float = 600.0
    max_memory_bytes: int = 8 * 1024**3
    context_tokens: int | None = None
    """Of the teacher; none lets its server say when a conversation is too long."""
    missing_data: str = "skip"
    """What becomes of questions whose tables are not here: `skip`, or `simulate` (a model invents the outputs)."""
    in_flight: int = 4
    """Questions at a time in one task."""

    def __post_init__(self) -> None:
        if self.missing_data not in ("skip", "simulate"):
            raise ValueError(f"missing_data is {self.missing_data!r}; expected skip or simulate")

    @property
    def agent(self) -> AgentSettings:
        """For the agent's loop."""
        return agent_settings(self.prompt, context_tokens=self.context_tokens)

    @property
    def budget(self) -> Budget:
        """Of an episode."""
        return Budget(max_turns=self.max_turns, cell_timeout_s=self.cell_timeout_s, total_cell_s=self.total_cell_s)


class Traces(ModelStage):
    """Runs the episodes; rejects only what can't be run.

    Args:
        datasets: the folder of data sets.
    """

    name = "traces"
    version = 2
    upstream = "unique"
    schema = SCHEMA
    takes_over = True
    batch_items = 4

    def __init__(
        self, folder: RunFolder, settings: TraceSettings, models: dict[str, ModelSettings], datasets: Path
    ) -> None:
        super().__init__(folder, models, settings.in_flight)
        self.settings, self.datasets = settings, datasets

    def config(self) -> Any:
        """Settings, prompt and models."""
        settings = msgspec.to_builtins(msgspec.structs.replace(self.settings, in_flight=0))
        models = {name: model.identity for name, model in self.models.items()}
        return [settings, self.settings.agent.system_prompt, models]

    async def judge(self, item: Item) -> Row | Rejected:
        """All attempts, one after the other."""
        row: Row = item.payload
        task = msgspec.json.decode(row["task"], type=Task)
        if not row["has_data"] and self.settings.missing_data == "skip":
            return Rejected("data_not_here", ", ".join(task.metadata["missing"]))
        if (
            not row["has_data"] and not task.files
        ):  # with nothing missing by name, a kernel would run in an empty folder
            return Rejected("path_not_known", ", ".join(task.metadata["missing"]))
        try:
            records = [await self._episode(item, task, attempt) for attempt in range(self.settings.attempts)]
        except _SimulatorFailed as error:
            return Rejected("simulator_failed", str(error))
        return {
            "id": item.id,
            "key": item.key,
            "notebook": row["notebook"],
            "task": row["task"],
            "records": msgspec.json.encode(records).decode(),
            "attempts": len(records),
        }

    async def _episode(self, item: Item, task: Task, attempt: int) -> EpisodeRecord:
        pool = TaskPool([task], self.datasets)
        for _ in range(1 + MACHINE_RETRIES):
            record = await run_episode(
                Job(task, "teacher", attempt),
                pool,
                lambda task, seed: self._model("teacher", item, seed),
                budget=self.settings.budget,
                make_interpreter=lambda: make_kernel(KernelSettings(max_memory_bytes=self.settings.max_memory_bytes)),
                settings=self.settings.agent,
                simulator=self._model("simulator", item, attempt) if "simulator" in self.models else None,
            )
            if record.stop_reason != "infrastructure_error":
                return _timeless(record)
            error = record.error or "the episode failed"
            if error.startswith(("the model:", UNAVAILABLE)):
                raise ModelUnavailable(error)
            if error.startswith(UNUSABLE):
                raise _SimulatorFailed(error)
        raise InfrastructureError(error)

    def _model(self, role: str, item: Item, seed: int) -> Model:
        async def respond(messages: Sequence[Message], tools: Sequence[dict[str, Any]], /) -> Reply:
            return await self.model(role).ask(item.id, messages, tools, seed=seed)

        return respond


def _timeless(record: EpisodeRecord) -> EpisodeRecord:
    """The record without what depends on the hour and the load: equal work gives equal bytes."""
    cells = [msgspec.structs.replace(cell, duration_s=0.0) for cell in record.cells]
    return msgspec.structs.replace(
        record, cells=cells, started_at="", duration_s=0.0, cell_s=0.0, model_s=0.0, usage=Usage()
    )
