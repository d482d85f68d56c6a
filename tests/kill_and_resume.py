"""A run that is killed at random moments and gone on with: started by the tests as a process of its own.

Each life of the run is a forked child, so that a life costs no start of Python: `kill_and_resume.py FOLDER N KILLS
KERNEL`, where KERNEL is "fake" (the files are what is tested) or "real".
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes import FakeInterpreter

import jupyter_env.rollout as module
from jupyter_env import Task, TaskPool
from jupyter_env.action import ExecuteCode, FinalAnswer, tool_call
from jupyter_env.answer import Integer
from jupyter_env.chat import Model, Reply
from jupyter_env.runfile import RunConfig, claim_folder, pool_digest

POOL = TaskPool(Task(id=f"t{i}", question=f"What is {i} + 1?", answer=Integer(value=i + 1)) for i in range(50))
CONFIG = RunConfig(pool=pool_digest(POOL), agents={"adder": {}}, budget={}, versions={})


def adder(task: Task, seed: int) -> Model:
    async def respond(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> Reply:
        await asyncio.sleep(random.random() * 0.02)
        number = int(task.id[1:])
        action: Any = ExecuteCode(code=f"{number} + 1" + "  # padding" * 2000)
        if len(messages) > 2:
            action = FinalAnswer(answer=str(number + 1))
        return Reply(message={"role": "assistant", "content": "", "tool_calls": [tool_call(action)]})

    return respond


def live(folder: Path, n: int) -> None:
    claim_folder(folder, CONFIG, resume=True)
    jobs = module.plan(POOL, ["adder"], n // len(POOL))
    asyncio.run(
        module.rollout(jobs, POOL, {"adder": adder}, folder / "episodes.jsonl", concurrency=4, config=CONFIG.hash)
    )


def main(folder: Path, n: int, kills: int, kernel: str) -> None:
    if kernel == "fake":
        module.make_kernel = lambda settings: FakeInterpreter()  # type: ignore[assignment,return-value]
    rng, done = random.Random(0), 0
    path = folder / "episodes.jsonl"
    while True:
        life = os.fork()
        if life == 0:
            random.seed()
            live(folder, n)
            os._exit(0)
        if done < kills:
            # A moment that lies anywhere in the writing of one of the next episodes.
            before = path.stat().st_size if path.exists() else 0
            while rng.random() < 0.8 or not path.exists() or path.stat().st_size == before:
                time.sleep(rng.random() * 0.004)
                if os.waitpid(life, os.WNOHANG)[0]:
                    sys.exit(f"the run was through after {done} kills")
            os.kill(life, signal.SIGKILL)
            done += 1
        status = os.waitstatus_to_exitcode(os.waitpid(life, 0)[1])
        if done == kills and status == 0:
            return
        if status not in (0, -signal.SIGKILL):
            sys.exit(f"a life ended with {status}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
