"""Rollouts of a GRPO batch beside TRL's own environment loop, in one run: `python benchmarks/grpo_env.py`.

Both go through TRL's GRPOTrainer with the same tiny model and the same kernels, isolated and parked; the model's turns
are dictated (the time of sampling is not what is compared): one cell and an answer. The cell waits, or computes, for a
quarter of a second. TRL's `environment_factory` runs the tools of a batch one after another; ours all at once.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from jupyter_env import Task, TaskPool
from jupyter_env.action import ExecuteCode, FinalAnswer, tool_call, tool_schemas
from jupyter_env.adapters.trl import trl_environment, trl_rows
from jupyter_env.answer import Integer
from jupyter_env.interpreters import KernelSettings
from rl.environments import Environments
from rl.generation import BatchGenerator
from rl.recipe import Recipe
from rl.rollouts import Runner, TokenBudget
from rl.tasks import Schedule
from rl.template import Template
from rl.training import Rollouts, prompt_of

CELLS = {
    "waits": "import time\ntime.sleep(0.25)\nprint(42)",
    # Processor time, not wall time: 0.25 s of work each, however many share the cores.
    "computes": "import time\nend = time.process_time() + 0.25\nwhile time.process_time() < end:\n    pass\nprint(42)",
}
err = Console(stderr=True)


def turn(action: ExecuteCode | FinalAnswer) -> str:
    return f"<tool_call>\n{json.dumps(tool_call(action)['function'])}\n</tool_call>"


def dictated(tokenizer: Any, cell: str) -> Any:
    """From a conversation's tokens to its next turn's."""
    turns = [tokenizer(turn(action)).input_ids for action in (ExecuteCode(code=cell), FinalAnswer(answer="42"))]
    turns.append(tokenizer("Done.").input_ids)  # TRL asks once more after the answer
    start = tokenizer("<|im_start|>assistant\n").input_ids

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        found = []
        for prompt in prompts:
            said = sum(prompt[at : at + len(start)] == start for at in range(len(prompt))) - 1
            found.append([*turns[min(said, 2)], tokenizer.eos_token_id])
        return found

    return generate


def ours(pool: TaskPool, tokenizer: Any, cell: str, n: int, rounds: int, folder: Path) -> list[float]:
    """Seconds of each batch."""
    template = Template(tokenizer, tool_schemas())
    recipe = Recipe(groups=1, group_size=n, device_batch=n)
    turns = dictated(tokenizer, cell)

    def open_generator(_trainer: Any) -> BatchGenerator:
        return BatchGenerator(lambda prompts, _: (turns(prompts), None), template.end, turn_tokens=200, slots=n)

    with Environments(pool.data_root, kernel=KernelSettings(parked=n, refill_after_s=1.0)) as environments:
        runner = Runner(environments, template, TokenBudget(turn=200, episode=4000))
        rollouts = Rollouts(pool, recipe, runner, open_generator, Schedule(pool, recipe), folder)
        trainer = SimpleNamespace(state=SimpleNamespace(global_step=0))
        times = []
        for _ in range(rounds + 1):  # the first starts the servers
            began_s = time.perf_counter()
            output = rollouts([prompt_of(pool[0])] * n, trainer)
            times.append(time.perf_counter() - began_s)
            assert output["reward_correct"] == [1.0] * n
            time.sleep(3.0)  # an update's time, in which kernels are parked
    return times[1:]


def theirs(pool: TaskPool, tokenizer: Any, model: Path, cell: str, n: int, rounds: int, folder: Path) -> list[float]:
    """Seconds of each batch in TRL's loop."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer
    from trl.chat_template_utils import qwen3_template

    tokenizer.response_template = qwen3_template
    config = GRPOConfig(
        output_dir=str(folder), num_generations=n, per_device_train_batch_size=n, max_completion_length=2000,
        report_to="none", use_cpu=True, bf16=False, max_steps=1, max_tool_calling_iterations=4,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=config,
        train_dataset=Dataset.from_list(trl_rows(pool)),
        processing_class=tokenizer,
        environment_factory=trl_environment(pool, kernel=KernelSettings(parked=n, refill_after_s=1.0)),
    )
    turns = dictated(tokenizer, cell)
    trainer._generate_single_turn = lambda prompt_ids, *_, **__: (turns(prompt_ids), None)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (None, None, None)
    trainer.model.train()
    rows = trl_rows(pool) * n
    times = []
    for _ in range(rounds + 1):
        began_s = time.perf_counter()
        output = trainer._generate_and_score_completions([dict(row) for row in rows])
        times.append(time.perf_counter() - began_s)
        assert trainer._metrics["train"]["reward"][-1] == 1.0, "TRL's loop has not solved the task"
        del output
        time.sleep(3.0)
    for environment in trainer._environment_pool[None]:
        environment._running.close()
    return times[1:]


def main(
    rollouts: Annotated[int, typer.Option(help="Episodes in a batch.")] = 64,
    rounds: Annotated[int, typer.Option(help="Batches of each; the fastest counts.")] = 2,
    model: Annotated[Path | None, typer.Option(help="A tiny model's folder; default: one is made.")] = None,
    json_output: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure and print; see the top of the file."""
    from transformers import AutoTokenizer

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    cores = len(os.sched_getaffinity(0))
    rows = []
    with tempfile.TemporaryDirectory() as home:
        if model is None:
            model = Path(home) / "model"
            _make_model(model)
        for kind, cell in CELLS.items():
            pool = TaskPool([Task(id="a", question="What is 6 times 7?", answer=Integer(value=42))])
            err.print(f"{kind}: {rollouts} rollouts, ours", style="dim")
            tokenizer = AutoTokenizer.from_pretrained(model)
            own = min(ours(pool, tokenizer, cell, rollouts, rounds, Path(home) / "ours"))
            err.print(f"{kind}: {rollouts} rollouts, TRL's", style="dim")
            other = min(theirs(pool, tokenizer, model, cell, rollouts, rounds, Path(home) / "theirs"))
            rows.append({"cells": kind, "ours_s": own, "trl_s": other, "ratio": other / own,
                         "cells_cpu_s_per_s": 0.25 * rollouts / own})  # fmt: skip
    machine = f"{cores} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    if json_output:
        print(json.dumps({"machine": machine, "load": os.getloadavg(), "rollouts": rollouts, "rows": rows}, indent=2))
        return
    table = Table(title=f"{rollouts} rollouts of one cell and an answer; {machine}; load {os.getloadavg()[0]:.1f}")
    for name in ("cell", "ours, s", "environment_factory, s", "ratio", "cells' seconds in a second"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["cells"], f"{row['ours_s']:.2f}", f"{row['trl_s']:.2f}", f"{row['ratio']:.1f}",
                      f"{row['cells_cpu_s_per_s']:.1f}")  # fmt: skip
    Console().print(table)


def _make_model(folder: Path) -> None:
    import subprocess
    import sys

    subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "tests" / "tiny_model.py"), str(folder)], check=True
    )


if __name__ == "__main__":
    typer.run(main)
