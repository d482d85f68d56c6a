"""The command line: `jupyter-env`.

Exit codes: 0 done, 1 the checks found problems, 2 bad input, 3 the machine failed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import webbrowser
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.syntax import Syntax
from rich.table import Table

from jupyter_env.answer import describe
from jupyter_env.check import TaskReport, check_task
from jupyter_env.episode import Budget, EpisodeRecord
from jupyter_env.evaluate import LEVELS, PassRate, pass_rates
from jupyter_env.interpreters import InfrastructureError, KernelSettings
from jupyter_env.kernels_cli import doctor, kernelspec_app
from jupyter_env.play import play_episode
from jupyter_env.report.html import write_report
from jupyter_env.report.notebook import write_notebook
from jupyter_env.rollout import plan, read_records, rollout
from jupyter_env.scripted import AGENTS
from jupyter_env.task import TaskError, TaskPool

app = typer.Typer(
    help="Data-science agents in Jupyter notebooks: tasks, episodes, scores.",
    no_args_is_help=True,
    invoke_without_command=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tasks_app = typer.Typer(help="Make, read and check pools of tasks.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")
app.add_typer(kernelspec_app, name="kernelspec")
app.command()(doctor)
out = Console(emoji=False)  # a cell may print ":100:"
err = Console(stderr=True, emoji=False)

PoolFile = Annotated[
    str, typer.Argument(help="A pool: .jsonl, .parquet or a hub id such as owner/name.", metavar="POOL")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")]
Seed = Annotated[int, typer.Option(help="Same seed, same tasks.", min=0)]
Concurrency = Annotated[int | None, typer.Option(help="Kernels at a time. Default: twice the cores.", min=1)]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the tables. Default: `data` beside the pool.")]


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Data-science agents in Jupyter notebooks: tasks, episodes, scores."""
    if version:
        from jupyter_env import __version__

        out.print(__version__)
        raise typer.Exit


@app.command(epilog="Example: `jupyter-env demo --tasks 12`")
def demo(
    n_tasks: Annotated[int, typer.Option("--tasks", help="How many tasks.", min=4)] = 40,
    seed: Seed = 0,
    concurrency: Concurrency = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Three scripted agents on real tables: an oracle, one that guesses, one that peeks at the first rows."""
    with err.status(f"Making {n_tasks} tasks over real tables ..."):
        pool = TaskPool.procedural(n_tasks, seed=seed)
    _run(pool, list(AGENTS), 1, runs / time.strftime("demo-%Y%m%d-%H%M%S"), concurrency, Budget(), json)


@app.command("rollout", epilog="Example: `jupyter-env rollout pool/tasks.jsonl --agent peek --n 4`")
def rollout_command(
    pool: PoolFile,
    agent: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(AGENTS)}; may be given several times. Default: oracle."),
    ] = None,
    data_root: DataRoot = None,
    n: Annotated[int, typer.Option(help="Episodes per task and agent.", min=1)] = 1,
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Of the run; default: the time.")] = None,
    concurrency: Concurrency = None,
    max_turns: Annotated[int, typer.Option(help="Messages of the agent in an episode.", min=1)] = Budget().max_turns,
    cell_timeout: Annotated[float, typer.Option(help="Seconds for one cell.", min=0.1)] = Budget().cell_timeout_s,
    json: Json = False,
) -> None:
    """Run scripted agents on a pool; writes episodes, notebooks and a report."""
    agents = list(dict.fromkeys(agent or ["oracle"]))
    if unknown := sorted(set(agents) - set(AGENTS)):
        raise TaskError(f"there is no agent {', '.join(unknown)}; the agents are {', '.join(AGENTS)}")
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise TaskError(f"--name is the name of one folder below {runs}, got {name!r}")
    folder = runs / (name or time.strftime("rollout-%Y%m%d-%H%M%S"))
    if (folder / "episodes.jsonl").exists():
        raise TaskError(f"{folder} holds a run already; give another --name")
    budget = Budget(max_turns=max_turns, cell_timeout_s=cell_timeout)
    _run(TaskPool.load(pool, data_root), agents, n, folder, concurrency, budget, json)


def _run(
    pool: TaskPool, agents: list[str], n: int, folder: Path, concurrency: int | None, budget: Budget, json: bool
) -> None:
    """Roll out, then write and show everything about it."""
    if not len(pool):
        raise TaskError("the pool is empty; there is nothing to run")
    jobs = plan(pool, agents, n)
    correct = 0
    with _progress("episodes") as progress:
        bar = progress.add_task("Episodes", total=len(jobs))

        def advance(record: EpisodeRecord) -> None:
            nonlocal correct
            correct += record.reward == 1.0
            progress.update(bar, advance=1, description=f"Episodes ({correct} right)")

        records = asyncio.run(
            rollout(
                jobs, pool, AGENTS, folder / "episodes.jsonl", concurrency=concurrency, budget=budget, on_record=advance
            )
        )
    with err.status("Writing notebooks and the report ..."):
        pool.save(folder / "tasks.jsonl")
        # Where the notebooks look for it, without a second copy.
        (folder / "notebooks").mkdir(exist_ok=True)
        (folder / "data").mkdir(exist_ok=True)
        (folder / "notebooks" / "data").symlink_to("../data")
        for record in records:
            write_notebook(record, folder / "notebooks" / f"{_file_name(record.id)}.ipynb")
        write_report(records, folder / "report.html", title=folder.name)
    if json:
        _print_json(
            {
                "run": str(folder),
                "episodes": len(records),
                "stop_reasons": dict(Counter(str(record.stop_reason) for record in records)),
                "pass_rates": {
                    agent: {level: _rate_json(rate) for level, rate in levels.items()}
                    for agent, levels in pass_rates(records).items()
                },
            }
        )
        return
    _print_rates(records)
    for label, path in (("Episodes", "episodes.jsonl"), ("Notebooks", "notebooks"), ("Report", "report.html")):
        out.print(f"{label:<10} {folder / path}", soft_wrap=True)
    out.print(f"Open the report with: jupyter-env view {folder}", soft_wrap=True)


def _rate_json(rate: PassRate) -> dict[str, Any]:
    return {"correct": rate.correct, "episodes": rate.episodes, "rate": rate.rate, "interval95": rate.interval}


def _print_rates(records: list[EpisodeRecord]) -> None:
    rates = pass_rates(records)
    levels = [level for level in (*LEVELS, "all") if any(level in of_agent for of_agent in rates.values())]
    table = Table(title="Pass rate with 95% interval (Wilson)", caption=f"{len(records)} episodes")
    table.add_column("agent")
    for level in levels:
        table.add_column(level, justify="right")
    for agent, of_agent in rates.items():
        table.add_row(agent, *(_rate_text(of_agent.get(level)) for level in levels))
    out.print(table)
    if failed := sum(record.stop_reason == "infrastructure_error" for record in records):
        out.print(f"[yellow]{failed} episodes failed for the machine's sake and do not count.[/yellow]")


def _rate_text(rate: PassRate | None) -> str:
    if rate is None:
        return "-"
    low, high = rate.interval
    return f"{rate.rate:.1%} ({rate.correct}/{rate.episodes})\n{low:.0%} to {high:.0%}"


def _file_name(record_id: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in record_id)[:150]


@app.command(epilog="Example: `jupyter-env view runs/demo-20260101-120000`")
def view(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or its episodes.jsonl.")],
    browser: Annotated[bool, typer.Option(help="Open the report in a browser.")] = True,
) -> None:
    """Write the report of a run anew and open it."""
    episodes = run / "episodes.jsonl" if run.is_dir() else run
    report = episodes.parent / "report.html"
    write_report(list(read_records(episodes)), report, title=episodes.parent.name)
    out.print(str(report))
    if browser and not webbrowser.open(report.resolve().as_uri()):
        err.print("No browser could be opened; open the file yourself.")


@app.command(epilog="Example: `jupyter-env play` or `jupyter-env play pool/tasks.jsonl --task penguins-3fa9c1`")
def play(
    pool: Annotated[str | None, typer.Argument(help="A pool; default: generated tasks.")] = None,
    task: Annotated[str | None, typer.Option(help="Id of the task; default: one drawn by the seed.")] = None,
    seed: Seed = 0,
) -> None:
    """Be the agent: run cells in the terminal and answer."""
    tasks = TaskPool.load(pool) if pool else TaskPool.procedural(8, seed=seed)
    play_episode(tasks, task, seed, out)


@tasks_app.command(
    "generate", epilog="Example: `jupyter-env tasks generate --n 1000 --tables my_csvs --out pool/tasks.jsonl`"
)
def tasks_generate(
    path: Annotated[Path, typer.Option("--out", help="File to write: .jsonl or .parquet; must not exist yet.")],
    n: Annotated[int, typer.Option(help="How many.", min=1)] = 100,
    seed: Seed = 0,
    tables: Annotated[Path | None, typer.Option(help="A folder of CSV files; default: the embedded tables.")] = None,
) -> None:
    """Generate tasks with executed reference code."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise TaskError(f"{path}: a pool is saved as .jsonl or .parquet")
    if path.exists():
        raise TaskError(f"{path} exists already; give another --out or remove it")
    with err.status(f"Making {n} tasks ..."):
        pool = TaskPool.procedural(n, seed=seed, tables=tables)
        pool.save(path)
    out.print(f"{len(pool)} tasks in {path}, their tables in {path.parent / 'data'}")


@tasks_app.command("list", epilog="Example: `jupyter-env tasks list pool/tasks.jsonl --level hard`")
def tasks_list(
    pool: PoolFile,
    level: Annotated[str | None, typer.Option(help=f"Only one of {', '.join(LEVELS)}.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 50,
    json: Json = False,
) -> None:
    """The tasks of a pool, a line each."""
    if level is not None and level not in LEVELS:
        raise TaskError(f"the levels are {', '.join(LEVELS)}, not {level!r}")
    tasks = TaskPool.load(pool).filter(lambda task: level is None or task.level == level)
    if json:
        _print_json(
            [
                {"id": task.id, "level": task.level, "dataset": task.dataset, "question": task.question}
                for task in tasks[:limit]
            ]
        )
        return
    table = Table(caption=f"{min(limit, len(tasks))} of {len(tasks)} tasks")
    for column in ("id", "level", "data set", "question"):
        table.add_column(column, overflow="fold", no_wrap=column == "id")  # an id is there to be copied
    for task in tasks[:limit]:
        table.add_row(*map(escape, (task.id, task.level, task.dataset, task.question)))
    out.print(table)


@tasks_app.command("show", epilog="Example: `jupyter-env tasks show pool/tasks.jsonl penguins-3fa9c1`")
def tasks_show(
    pool: PoolFile, task_id: Annotated[str, typer.Argument(help="Id of the task.")], json: Json = False
) -> None:
    """One task with its expected answer and reference code."""
    task = TaskPool.load(pool).get(task_id)
    if json:
        _print_json(task)
        return
    out.print(f"[bold]{escape(task.question)}[/bold]\n")
    for label, text in (
        ("Guidelines", task.guidelines),
        ("Answer", describe(task.answer)),
        ("Files", ", ".join(file.path for file in task.files)),
        ("Level", task.level),
        ("Data set", f"{task.dataset} ({task.licence or 'licence not stated'})"),
        ("Source", task.source),
    ):
        out.print(f"{label:<11} {escape(text)}")
    if task.reference_code:
        out.print(Syntax(task.reference_code, "python", theme="ansi_light"))


@tasks_app.command("check", epilog="Example: `jupyter-env tasks check pool/tasks.jsonl --limit 20`")
def tasks_check(
    pool: PoolFile,
    limit: Annotated[int | None, typer.Option(help="Only the first so many.", min=1)] = None,
    data_root: DataRoot = None,
    concurrency: Concurrency = None,
    json: Json = False,
) -> None:
    """Check that each task is sound: reference right in two kernels, cheap answers wrong, tables in place."""
    tasks = TaskPool.load(pool, data_root)[:limit]
    if not len(tasks):
        raise TaskError("the pool is empty; there is nothing to check")
    reports = asyncio.run(_check_all(tasks, concurrency or 2 * (os.cpu_count() or 1)))
    unsound = [report for report in reports if not report.sound]
    if json:
        _print_json(reports)
    else:
        table = Table(caption=f"{len(reports) - len(unsound)} of {len(reports)} tasks are sound")
        for column in ("id", "problems", "notes"):
            table.add_column(column, overflow="fold")
        for report in reports:
            if report.problems or report.notes:
                table.add_row(*map(escape, (report.task_id, "\n".join(report.problems), "\n".join(report.notes))))
        out.print(table)
    if unsound:
        raise typer.Exit(1)


async def _check_all(pool: TaskPool, concurrency: int) -> list[TaskReport]:
    slots = asyncio.Semaphore(concurrency)
    with _progress("tasks") as progress:
        bar = progress.add_task("Checking", total=len(pool))

        async def check(index: int) -> TaskReport:
            async with slots:
                report = await check_task(pool[index], pool, KernelSettings())
            progress.advance(bar)
            return report

        return await asyncio.gather(*(check(index) for index in range(len(pool))))


def _progress(noun: str) -> Progress:
    counted = MofNCompleteColumn()
    remaining = TimeRemainingColumn()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        counted,
        TextColumn(noun),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        remaining,
        console=err,
    )


def _print_json(data: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(data), indent=2).decode() + "\n")


def main() -> None:
    """Entry point: errors that a person can act on are one plain message, not a traceback."""
    # As Ctrl-C does, so that kernels and their folders go; batch systems stop jobs this way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except TaskError as error:
        err.print(f"[red]Error:[/red] {escape(str(error))}")
        raise SystemExit(2) from None
    except InfrastructureError as error:
        err.print(f"[red]The machine failed:[/red] {escape(str(error))}")
        raise SystemExit(3) from None
