"""`jupyter-env rollout` and the run behind `jupyter-env demo`."""

from __future__ import annotations

import asyncio
import json as jsonlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from jupyter_env.agent import PROMPTS, AgentSettings, agent_settings
from jupyter_env.answer import VERIFIER_VERSION
from jupyter_env.chat import ModelSetupError, Usage
from jupyter_env.commands.console import (
    Concurrency,
    DataRoot,
    Json,
    PoolFile,
    err,
    load_pool,
    out,
    print_json,
    progress_of,
)
from jupyter_env.episode import Budget, EpisodeRecord
from jupyter_env.evaluate import LEVELS, PassRate, pass_rates
from jupyter_env.interpreters import InfrastructureError
from jupyter_env.report.html import write_report
from jupyter_env.report.notebook import write_notebook
from jupyter_env.rollout import Job, plan, rollout
from jupyter_env.runfile import RunConfig, claim_folder, pool_digest
from jupyter_env.scripted import AGENTS, MakeModel
from jupyter_env.task import TaskError, TaskPool


@dataclass
class Run:
    """All that a run needs to begin."""

    pool: TaskPool
    agents: dict[str, dict[str, Any]]
    """By name, with what identifies each; for `RunConfig`."""
    folder: Path
    n: int = 1
    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    settings: AgentSettings = field(default_factory=AgentSettings)
    concurrency: int | None = None
    retries: int = 2
    resume: bool = False
    mix: bool = False
    reports: bool = True

    @property
    def config(self) -> RunConfig:
        """What can change an outcome."""
        from jupyter_env import __version__

        return RunConfig(
            pool=pool_digest(self.pool),
            agents=self.agents,
            budget=msgspec.to_builtins(self.budget),
            versions={"jupyter_env": __version__, "verifier": VERIFIER_VERSION},
        )

    @property
    def jobs(self) -> list[Job]:
        """Every episode of it."""
        return plan(self.pool, list(self.agents), self.n, self.seed)


def rollout_command(
    pool: Annotated[str | None, PoolFile.__metadata__[0]] = None,
    pool_option: Annotated[str | None, typer.Option("--pool", help="The pool, if not given as the argument.")] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option(help=f"A scripted agent: {', '.join(AGENTS)}; may be given several times. Default: oracle."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model, as its server knows it, in place of --agent.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Of an OpenAI-compatible server, such as http://localhost:8000/v1.")
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(help="Name of the environment variable with the server's key.")
    ] = "OPENAI_API_KEY",
    prompt: Annotated[
        str, typer.Option(help=f"System prompt: {', '.join(PROMPTS)} (comments required) or a text file.")
    ] = "system",
    temperature: Annotated[float | None, typer.Option(help="Default: the server's.", min=0)] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: the server's.", min=0, max=1)] = None,
    max_tokens: Annotated[int, typer.Option(help="Of one reply.", min=1)] = 4096,
    context_tokens: Annotated[
        int | None, typer.Option(help="Of the model; old outputs are shortened to fit. Default: what the server says.")
    ] = None,
    extra: Annotated[
        str | None,
        typer.Option(help='More fields of each request: \'{"chat_template_kwargs": {"enable_thinking": false}}\'.'),
    ] = None,
    data_root: DataRoot = None,
    n: Annotated[int, typer.Option(help="Episodes per task and agent.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of the first of the n episodes; the others count on.", min=0)] = 0,
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Of the run; default: the time.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of this --name.")] = False,
    mix: Annotated[bool, typer.Option("--mix", help="With --resume: even if it was configured otherwise.")] = False,
    concurrency: Concurrency = None,
    retries: Annotated[int, typer.Option(help="Of an episode that the machine failed.", min=0)] = 2,
    max_turns: Annotated[int, typer.Option(help="Messages of the agent in an episode.", min=1)] = Budget().max_turns,
    cell_timeout: Annotated[float, typer.Option(help="Seconds for one cell.", min=0.1)] = Budget().cell_timeout_s,
    reports: Annotated[bool, typer.Option(help="Write notebooks and the report at the end.")] = True,
    json: Json = False,
) -> None:
    """Run agents on a pool; writes episodes, notebooks and a report. A run that was cut goes on with --resume."""
    if (pool is None) == (pool_option is None):
        raise TaskError("give one pool: a file, a hub id or a benchmark, as the argument or with --pool")
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise TaskError(f"--name is the name of one folder below {runs}, got {name!r}")
    if (mix and not resume) or (resume and name is None):
        raise TaskError("--mix goes with --resume" if mix and not resume else "--resume needs the run's --name")
    if model is not None and agent:
        raise TaskError("give --model or --agent, not both")
    run = Run(
        pool=load_pool(pool or pool_option or "", data_root),
        agents={},
        folder=runs / (name or time.strftime("rollout-%Y%m%d-%H%M%S")),
        n=n,
        seed=seed,
        budget=Budget(max_turns=max_turns, cell_timeout_s=cell_timeout),
        concurrency=concurrency,
        retries=retries,
        resume=resume,
        mix=mix,
        reports=reports,
    )
    if model is None:
        run.agents = _scripted(agent or ["oracle"])
        _show(run, _roll_out(run, AGENTS), json)
        return
    try:
        run.settings = agent_settings(prompt, context_tokens=context_tokens, reply_tokens=max_tokens)
        fields = jsonlib.loads(extra or "{}")
        if not isinstance(fields, dict):
            raise ValueError(f"--extra is a JSON object, got {extra!r}")
    except ValueError as error:
        raise TaskError(str(error)) from None
    from jupyter_env.models.server import Sampling, ServerModel

    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, extra=fields)
    run.agents = {
        model: {
            "model": model,
            "sampling": msgspec.to_builtins(sampling),
            "settings": msgspec.to_builtins(run.settings),
        }
    }
    run.concurrency = concurrency or 32
    key = os.environ.get(api_key_env)

    def connect() -> ServerModel:
        return ServerModel(model, base_url, api_key=key, sampling=sampling, concurrency=run.concurrency or 32)

    _show(run, _roll_out(run, connect=connect), json)


def _scripted(agents: list[str]) -> dict[str, dict[str, Any]]:
    if unknown := sorted(set(agents) - set(AGENTS)):
        raise TaskError(f"there is no agent {', '.join(unknown)}; the agents are {', '.join(AGENTS)}")
    return {agent: {"scripted": agent} for agent in agents}


def _roll_out(
    run: Run, agents: dict[str, MakeModel] | None = None, connect: Callable[[], Any] | None = None
) -> list[EpisodeRecord]:
    """Run the episodes under a progress bar; the model, if one is connected to, is asked once before the first."""
    if not len(run.pool):
        raise TaskError("the pool is empty; there is nothing to run")
    claim_folder(run.folder, run.config, resume=run.resume, mix=run.mix)
    _save_pool(run)
    right = ended = failures = 0
    jobs = run.jobs

    def describe() -> str:
        failed = f"; {failures} failures of the machine" if failures else ""
        return f"Episodes ({right}/{ended} right{f', {right / ended:.0%}' if ended else ''}{failed})"

    with progress_of("episodes") as progress:
        bar = progress.add_task(describe(), total=len(jobs))

        def advance(record: EpisodeRecord) -> None:
            nonlocal right, ended
            if record.stop_reason != "infrastructure_error":
                right += record.reward == 1.0
                ended += 1
            progress.update(bar, advance=1, description=describe())

        def failed(record: EpisodeRecord) -> None:
            nonlocal failures
            failures += 1
            progress.update(bar, description=describe())

        async def go() -> list[EpisodeRecord]:
            made, settings, model = agents, run.settings, None
            if connect is not None:
                model = connect()
                await model.check()
                settings = _fitting(settings, model.context_tokens)
                made = {name: lambda task, seed: model.seeded(seed) for name in run.agents}
            assert made is not None
            try:
                return await rollout(
                    jobs,
                    run.pool,
                    made,
                    run.folder / "episodes.jsonl",
                    concurrency=run.concurrency,
                    budget=run.budget,
                    settings=settings,
                    retries=run.retries,
                    config=run.config.hash,
                    on_record=advance,
                    on_failure=failed,
                    on_found=lambda found: progress.update(bar, completed=found),
                )
            finally:
                if model is not None:
                    await model.close()

        try:
            return asyncio.run(go())
        except (KeyboardInterrupt, ModelSetupError, OSError):
            if ended:
                err.print(f"Stopped. What has finished is kept: go on with --name {run.folder.name} --resume")
            raise


def _fitting(settings: AgentSettings, context_tokens: int | None) -> AgentSettings:
    """The settings with the context that the server tells, if the user told none."""
    limit = settings.context_tokens or context_tokens
    if limit is not None and settings.reply_tokens > limit // 2:
        raise ModelSetupError(
            f"the model's context has {limit:,} tokens, and --max-tokens keeps {settings.reply_tokens:,} of them free "
            f"for each reply; give at most {limit // 2:,}"
        )
    return msgspec.structs.replace(settings, context_tokens=limit)


def _save_pool(run: Run) -> None:
    """The tasks and tables beside the episodes, so that the run can be scored and read on its own."""
    path = run.folder / "tasks.jsonl"
    tasks = {task.id: task for task in run.pool}
    if run.mix and path.exists():
        tasks = {**{task.id: task for task in TaskPool.load(path)}, **tasks}
    TaskPool(tasks.values(), run.pool.data_root).save(path)


def _show(run: Run, records: list[EpisodeRecord], json: bool) -> None:
    """Write and show everything about a run that has ended."""
    folder, finished = run.folder, [record for record in records if record.stop_reason != "infrastructure_error"]
    if run.reports:
        with err.status("Writing notebooks and the report ..."):
            # Where the notebooks look for it, without a second copy.
            (folder / "notebooks").mkdir(exist_ok=True)
            (folder / "data").mkdir(exist_ok=True)
            if not (folder / "notebooks" / "data").is_symlink():
                (folder / "notebooks" / "data").symlink_to("../data")
            for record in records:
                write_notebook(record, folder / "notebooks" / f"{_file_name(record.id)}.ipynb")
            write_report(records, folder / "report.html", title=folder.name)
    usage = sum((record.usage for record in records), Usage())
    if json:
        print_json(
            {
                "run": str(folder),
                "episodes": len(records),
                "stop_reasons": dict(Counter(str(record.stop_reason) for record in records)),
                "usage": usage,
                "pass_rates": {
                    agent: {level: _rate_json(rate) for level, rate in levels.items()}
                    for agent, levels in pass_rates(records).items()
                },
            }
        )
    else:
        _print_rates(records)
        if usage.requests:
            cached = f" ({usage.cached_tokens / usage.prompt_tokens:.0%} from the cache)" if usage.prompt_tokens else ""
            out.print(
                f"{usage.requests:,} requests, {usage.prompt_tokens:,} prompt tokens{cached}, "
                f"{usage.completion_tokens:,} completion tokens, {usage.retries:,} retries"
            )
        written = [("Episodes", "episodes.jsonl"), ("Notebooks", "notebooks"), ("Report", "report.html")]
        for label, path in written if run.reports else written[:1]:
            out.print(f"{label:<10} {folder / path}", soft_wrap=True)
        if run.reports:
            out.print(f"Open the report with: jupyter-env view {folder}", soft_wrap=True)
    if not finished:
        raise InfrastructureError(f"no episode could be run; the last error: {(records[-1].error or '')[-500:]}")


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
        table.add_row(escape(agent), *(_rate_text(of_agent.get(level)) for level in levels))
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


def run_scripted(pool: TaskPool, folder: Path, concurrency: int | None, json: bool) -> None:
    """All scripted agents, one episode each on every task of a pool: the demo."""
    run = Run(pool=pool, agents=_scripted(list(AGENTS)), folder=folder, concurrency=concurrency)
    _show(run, _roll_out(run, AGENTS), json)
