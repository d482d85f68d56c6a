"""Fidelity: a simulator that really runs the cells agrees with the kernel in all, one that does not, does not."""

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Answer, ScriptedServer, completion
from typer.testing import CliRunner

from jupyter_env import TaskPool
from jupyter_env.blocking import LoopThread
from jupyter_env.cli import app
from jupyter_env.fidelity import agreements, same_text
from jupyter_env.interpreters import CellResult, LocalKernel, make_kernel


def code_of(body: dict) -> str:
    return body["messages"][1]["content"].partition("<cell_to_execute>\n")[2].partition("\n</cell_to_execute>")[0]


class RealWorld:
    """Answers a simulator's prompts by running the cells in kernels, one for each history of cells."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._loop = LoopThread()
        self._kernels: dict[str, LocalKernel] = {}

    def __call__(self, body: dict, number: int) -> Answer:
        prompt = body["messages"][1]["content"]
        code = code_of(body)
        cells = re.findall(r"<python_cell>\n(.*?)\n</python_cell>", prompt, re.DOTALL)
        tables = prompt.partition("<available_files>\n")[2].partition("\n</available_files>")[0]
        result = self._loop.run(self._run(tables, cells, code))
        text = result.text
        if result.status == "code_error":
            error = result.outputs[-1]
            text = f"Traceback (most recent call last):\n{error['ename']}: {error['evalue']}"
        return completion(f'<output_cell status="{result.status}">\n{text}\n</output_cell>')

    async def _run(self, tables: str, cells: list[str], code: str) -> CellResult:
        kernel = self._kernels.pop(json.dumps([tables, cells]), None)
        if kernel is None:
            kernel = make_kernel()
            await kernel.start(self._files)
            for past in cells:
                await kernel.run_cell(past, 60)
        result = await kernel.run_cell(code, 60)
        old = self._kernels.pop(json.dumps([tables, [*cells, code]]), None)
        self._kernels[json.dumps([tables, [*cells, code]])] = kernel
        if old is not None:
            await old.close()
        return result

    def close(self) -> None:
        async def close_all() -> None:
            await asyncio.gather(*(kernel.close() for kernel in self._kernels.values()))

        self._loop.run(close_all())
        self._loop.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "tasks.jsonl"
    TaskPool.procedural(12, seed=3).save(path)
    return path


@pytest.fixture(scope="module")
def real_world(pool: Path) -> Iterator[RealWorld]:
    with world_of(pool) as world:
        yield world


@contextlib.contextmanager
def world_of(pool: Path) -> Iterator[RealWorld]:
    tasks = TaskPool.load(pool)
    world = RealWorld({file.path: tasks.file_path(file) for task in tasks for file in task.files})
    yield world
    world.close()


def measured(pool: Path, server: ScriptedServer, *options: str) -> dict:
    command = ["fidelity", str(pool), "--simulator", "tiny", "--base-url", server.url, "--json", *options]
    found = CliRunner().invoke(app, command, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    return {**report, "agreement": {each["kind"]: each for each in report["agreement"]}}


@pytest.mark.parametrize("tasks", [8, pytest.param(40, marks=pytest.mark.soak)])
def test_an_oracle_simulator_agrees_in_every_cell(tasks: int, tmp_path: Path):
    pool = tmp_path / "tasks.jsonl"
    TaskPool.procedural(tasks, seed=3).save(pool)
    with world_of(pool) as world, ScriptedServer(world) as server:
        report = measured(pool, server, "--concurrency", "2")
    every = report["agreement"]["all"]
    assert report["tasks"] == tasks and every["cells"] > 3.5 * tasks
    assert every["same_output"] == every["same_status"] == every["cells"] and every["rate"] == 1.0
    assert {"look", "compute", "error"} <= set(report["agreement"])


def test_a_broken_simulator_does_not(pool: Path, real_world: RealWorld, tmp_path: Path):
    def broken(body: dict, number: int) -> Answer:
        """Right about tables, a little off in what is computed, and sure that nothing ever fails."""
        answer = real_world(body, number)
        code = code_of(body)
        if "no such column" in code:
            return completion('<output_cell status="ok">\n0    1\n</output_cell>')
        if "print(" in code:
            return completion('<output_cell status="ok">\n-1\n</output_cell>')
        return answer

    with ScriptedServer(broken) as server:
        report = measured(pool, server, "--n", "6", "--out", str(tmp_path / "cells.jsonl"))
    kinds = report["agreement"]
    assert kinds["error"]["same_status"] == 0
    assert kinds["compute"]["same_output"] == 0 and kinds["compute"]["same_status"] == kinds["compute"]["cells"]
    assert 0 < kinds["look"]["rate"] < 1 and kinds["all"]["rate"] < 0.6
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert len(cells) == kinds["all"]["cells"]


def test_a_simulator_that_does_not_reply_is_counted(pool: Path):
    with ScriptedServer(lambda body, number: completion("I am sorry, I cannot run code.")) as server:
        every = measured(pool, server, "--n", "2")["agreement"]["all"]
    assert (every["cells"], every["no_reply"], every["same_output"]) == (2, 2, 0)


def test_the_cells_can_be_those_of_a_run(pool: Path, real_world: RealWorld, tmp_path: Path):
    arguments = ["--runs", str(tmp_path), "--name", "peeks", "--no-reports", "--json"]
    small = tmp_path / "small" / "tasks.jsonl"
    TaskPool.load(pool)[:3].save(small)
    done = CliRunner().invoke(app, ["rollout", str(small), "--agent", "peek", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    with ScriptedServer(real_world) as server:
        every = measured(small, server, "--run", str(tmp_path / "peeks"))["agreement"]["all"]
    assert (every["cells"], every["same_output"]) == (3, 3)


def test_texts_agree_in_words_and_numbers():
    assert same_text("a  1.0000001\n", "a 1.0") and not same_text("a 1.01", "a 1.0")
    assert not same_text("a b", "a") and not same_text("x 1", "y 1") and same_text("", " \n")
    assert agreements([]) == []
