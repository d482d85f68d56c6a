"""Generated tasks can be solved: the oracle earns every reward, twice, with equal answers."""

import asyncio
from pathlib import Path

import pytest

from jupyter_env import TaskPool
from jupyter_env.check import check_task
from jupyter_env.rollout import plan, rollout
from jupyter_env.scripted import AGENTS


def solve(pool: TaskPool, out: Path) -> list[str | None]:
    records = asyncio.run(rollout(plan(pool, ["oracle"], 1), pool, AGENTS, out))
    wrong = [(record.task_id, record.verdict) for record in records if record.reward != 1.0]
    assert not wrong
    return [record.answer for record in records]


def test_oracle_solves_60_tasks(tmp_path: Path) -> None:
    pool = TaskPool.procedural(60, seed=11)
    assert len(set(solve(pool, tmp_path / "episodes.jsonl"))) > 40


@pytest.mark.soak
def test_oracle_solves_1000_tasks_twice(tmp_path: Path) -> None:
    pool = TaskPool.procedural(1000, seed=12)
    assert solve(pool, tmp_path / "first.jsonl") == solve(pool, tmp_path / "second.jsonl")


@pytest.mark.soak
def test_200_generated_tasks_are_sound() -> None:
    pool = TaskPool.procedural(200, seed=13)

    async def check() -> list[object]:
        slots = asyncio.Semaphore(4)

        async def one(task):
            async with slots:
                return await check_task(task, pool)

        return [report for report in await asyncio.gather(*map(one, pool)) if not report.sound]

    assert asyncio.run(check()) == []
