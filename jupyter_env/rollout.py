"""Many episodes at once, each appended to a JSONL file as it ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from jupyter_env.episode import EPISODE_SCHEMA_VERSION, Budget, Episode, EpisodeRecord
from jupyter_env.interpreters import InfrastructureError, Interpreter, KernelSettings, make_kernel
from jupyter_env.scripted import MakeModel, Model
from jupyter_env.task import Task, TaskError, TaskPool


class Job(msgspec.Struct, frozen=True):
    """One episode to run."""

    task: Task
    agent: str
    seed: int


def plan(pool: TaskPool, agents: Sequence[str], n: int) -> list[Job]:
    """`n` episodes of each agent on each task, with seeds 0 to n - 1."""
    return [Job(task, agent, seed) for task in pool for agent in agents for seed in range(n)]


async def run_episode(
    job: Job,
    pool: TaskPool,
    make_model: MakeModel,
    *,
    budget: Budget,
    make_interpreter: Callable[[], Interpreter],
) -> EpisodeRecord:
    """Run one episode to its end; a failure of the machine is in the record, not raised.

    Raises:
        TaskDataError: a table of the task is missing or changed.
    """
    files = {file.path: pool.file_path(file) for file in job.task.files}
    episode = Episode(job.task, files, make_interpreter, budget=budget, seed=job.seed, agent=job.agent)
    try:
        await episode.start()
        await _converse(episode, make_model(job.task, job.seed))
    except InfrastructureError:
        pass  # recorded by the episode, which is no one's failure and no crash of the run
    finally:
        await episode.close()
    return episode.record


async def _converse(episode: Episode, respond: Model) -> None:
    while not episode.done:
        await episode.step(await respond(episode.messages, episode.tools))


async def rollout(
    jobs: Sequence[Job],
    pool: TaskPool,
    agents: dict[str, MakeModel],
    out: Path,
    *,
    concurrency: int | None = None,
    budget: Budget = Budget(),  # noqa: B008
    kernel: KernelSettings = KernelSettings(),  # noqa: B008
    on_record: Callable[[EpisodeRecord], None] = lambda record: None,
) -> list[EpisodeRecord]:
    """Run the jobs and append each record to `out` (JSONL).

    Args:
        concurrency: episodes at a time; by default twice the cores, so that one starts while another computes.
        on_record: called after each episode, for progress.

    Returns:
        The records in the order of the jobs.

    Raises:
        TaskDataError: a table is missing or changed; checked for all jobs before the first starts.
    """
    for file in {file for job in jobs for file in job.task.files}:
        pool.file_path(file)
    out.parent.mkdir(parents=True, exist_ok=True)
    slots = asyncio.Semaphore(concurrency or 2 * (os.cpu_count() or 1))
    encoder = msgspec.json.Encoder()

    with out.open("ab") as lines:

        async def run(job: Job) -> EpisodeRecord:
            async with slots:
                record = await run_episode(
                    job, pool, agents[job.agent], budget=budget, make_interpreter=lambda: make_kernel(kernel)
                )
            lines.write(encoder.encode(record) + b"\n")
            lines.flush()
            on_record(record)
            return record

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(job)) for job in jobs]
    return [task.result() for task in tasks]


def write_records(records: Iterable[EpisodeRecord], path: Path) -> None:
    """Write episodes as JSON lines, over what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))


def read_records(path: Path) -> Iterator[EpisodeRecord]:
    """The episodes of a JSONL file.

    Raises:
        TaskError: no such file, or a bad line; the message names file, line and field.
    """
    if not path.is_file():
        raise TaskError(f"{path} does not exist; expected the episodes.jsonl of a run")
    decoder = msgspec.json.Decoder(EpisodeRecord)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = decoder.decode(line)
            except msgspec.DecodeError as error:
                raise TaskError(f"{path}, line {number}: {error}") from None
            if record.schema_version > EPISODE_SCHEMA_VERSION:
                raise TaskError(
                    f"{path}, line {number}: schema_version {record.schema_version} is newer than "
                    f"{EPISODE_SCHEMA_VERSION}; install a newer jupyter-env"
                )
            yield record
