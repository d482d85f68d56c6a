"""What rollouts cost beside the kernels they run: episodes/s, CPU an episode, milliseconds a turn.

    python benchmarks/rollouts.py                  # 1 to 256 in flight, a few minutes on 2 cores
    python benchmarks/rollouts.py --in-flight 1 --in-flight 16 --json

Two programs do the same work in turns, `--rounds` times: "bare" starts a kernel, runs the cells and closes it, with
nothing around; "rollout" does it with a zero-latency model through agent, episode, verifier and the files of a run.
What the loop adds to a turn is the difference of their medians of one episode, by the number of its turns. CPU is that
of this process and of all its kernels. A last line gives what a request through the client of model servers costs.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

from jupyter_env import Task, TaskPool
from jupyter_env.action import ExecuteCode, FinalAnswer, tool_call
from jupyter_env.answer import Integer
from jupyter_env.chat import Model, Reply
from jupyter_env.interpreters import make_kernel
from jupyter_env.rollout import Job, plan, rollout

CELLS = ["import pandas as pd", "x = 1", "x + 1", "print(x)"]
POOL = TaskPool([Task(id="t", question="What is 1?", answer=Integer(value=1))])
err = Console(stderr=True)


def at_once(task: Task, seed: int) -> Model:
    """Says the cells one after another, and then the answer."""

    async def respond(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> Reply:
        turn = (len(messages) - 2) // 2
        action = ExecuteCode(code=CELLS[turn]) if turn < len(CELLS) else FinalAnswer(answer="1")
        return Reply(message={"role": "assistant", "content": "", "tool_calls": [tool_call(action)]})

    return respond


async def bare(n: int, in_flight: int) -> list[float]:
    """The kernels alone; seconds of each."""
    jobs, times = iter(range(n)), []

    async def run_next() -> None:
        for _ in jobs:
            began_s = time.perf_counter()
            kernel = make_kernel()
            await kernel.start({})
            for cell in CELLS:
                result = await kernel.run_cell(cell, timeout_s=60)
                assert result.status == "ok", result.text
            await kernel.close()
            times.append(time.perf_counter() - began_s)

    await asyncio.gather(*(run_next() for _ in range(in_flight)))
    return times


async def whole(n: int, in_flight: int) -> list[float]:
    """Through the whole loop; seconds of each episode, its closing and writing included."""
    times: list[float] = []
    began: dict[int, float] = {}

    def timed(task: Task, seed: int) -> Model:
        return at_once(task, seed)

    import jupyter_env.rollout as module

    run_episode = module.run_episode

    async def measured(job: Job, *arguments: Any, **options: Any) -> Any:
        began[job.seed] = time.perf_counter()
        return await run_episode(job, *arguments, **options)

    module.run_episode = measured  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            records = await rollout(
                plan(POOL, ["fast"], n),
                POOL,
                {"fast": timed},
                Path(folder) / "episodes.jsonl",
                concurrency=in_flight,
                on_record=lambda record: times.append(time.perf_counter() - began[record.seed]),
            )
    finally:
        module.run_episode = run_episode
    assert all(record.reward == 1.0 for record in records), [record.error for record in records if record.error]
    return times


def cpu_s() -> float:
    """Of this process, of its children, and of what those have reaped."""
    total = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.Error:
            continue
    return total


def measure(program: Any, n: int, in_flight: int) -> dict[str, Any]:
    """One run of a program: rates, CPU seconds an episode of everything and of this process, median seconds."""
    cpu_before, own_before, began_s = cpu_s(), time.process_time(), time.perf_counter()
    times = asyncio.run(program(n, in_flight))
    wall_s = time.perf_counter() - began_s
    return {
        "episodes_per_s": n / wall_s,
        "cpu_s": (cpu_s() - cpu_before) / n,
        "own_cpu_s": (time.process_time() - own_before) / n,
        "episode_s": median(times),
    }


def serve(ready: Connection) -> None:
    """A server that answers at once, in a process of its own."""
    message = {"role": "assistant", "content": "x"}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self.wfile.write(head.encode() + body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready.send(server.server_address[1])
    server.serve_forever()


def client_cost(requests: int = 200) -> dict[str, float] | None:
    """Milliseconds and CPU milliseconds of one request through `ServerModel`; None without the openai client."""
    from jupyter_env.chat import ModelSetupError

    try:
        from jupyter_env.models.server import ServerModel
    except ModelSetupError:
        return None
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    port = here.recv()

    async def ask() -> tuple[float, float]:
        model = ServerModel("x", f"http://127.0.0.1:{port}/v1", api_key="none")
        messages = [{"role": "user", "content": "x" * 4000}]
        await model(messages)
        times, cpu_before = [], time.process_time()
        for _ in range(requests):
            began_s = time.perf_counter()
            await model(messages)
            times.append(time.perf_counter() - began_s)
        await model.close()
        return median(times), (time.process_time() - cpu_before) / requests

    try:
        wall_s, own_s = asyncio.run(ask())
    finally:
        server.terminate()
        server.join()
    return {"request_ms": 1000 * wall_s, "request_cpu_ms": 1000 * own_s}


def main(
    in_flight: Annotated[list[int] | None, typer.Option(help="Episodes at a time; may be given several times.")] = None,
    episodes: Annotated[
        int, typer.Option(help="In each measurement, or twice what is in flight if that is more.")
    ] = 64,
    rounds: Annotated[int, typer.Option(help="Of the two programs in turns; medians are shown.")] = 3,
    json_output: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure and print; see the top of the file."""
    asyncio.run(bare(2, 1))  # the fork server has started then
    rows = []
    for number in in_flight or [1, 4, 16, 64, 256]:
        n = max(episodes if number > 1 else episodes // 2, 2 * number)
        measured: dict[str, list[dict[str, Any]]] = {"bare": [], "rollout": []}
        for turn in range(rounds):
            err.print(f"{number} in flight, {n} episodes, round {turn + 1} of {rounds}", style="dim")
            measured["bare"].append(measure(bare, n, number))
            measured["rollout"].append(measure(whole, n, number))
        row: dict[str, Any] = {"in_flight": number, "episodes": n}
        for name, found in measured.items():
            row[name] = {key: median(one[key] for one in found) for key in found[0]}
        turns = len(CELLS) + 1
        own_s = row["rollout"]["own_cpu_s"] - row["bare"]["own_cpu_s"]
        row["added_cpu_ms_per_turn"] = 1000 * own_s / turns
        row["added_ms_per_turn"] = 1000 * (row["rollout"]["episode_s"] - row["bare"]["episode_s"]) / turns
        rows.append(row)
    client = client_cost()
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    if json_output:
        print(json.dumps({"machine": machine, "load": os.getloadavg(), "rows": rows, "client": client}, indent=2))
        return
    table = Table(title=f"Rollouts of {len(CELLS)} cells and an answer; {machine}; load {os.getloadavg()[0]:.1f}")
    for column in (
        "in flight",
        "bare episodes/s",
        "rollout episodes/s",
        "bare CPU s/episode",
        "rollout CPU s/episode",
        "added ms/turn",
        "added CPU ms/turn",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["in_flight"]),
            f"{row['bare']['episodes_per_s']:.1f}",
            f"{row['rollout']['episodes_per_s']:.1f}",
            f"{row['bare']['cpu_s']:.3f}",
            f"{row['rollout']['cpu_s']:.3f}",
            f"{row['added_ms_per_turn']:.1f}",
            f"{row['added_cpu_ms_per_turn']:.1f}",
        )
    Console().print(table)
    if client:
        print(f"A request through the client: {client['request_ms']:.1f} ms, {client['request_cpu_ms']:.1f} ms of CPU")


if __name__ == "__main__":
    typer.run(main)
