"""The command line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from jupyter_env.chat import ModelSetupError
from pipeline.estimate import estimate
from pipeline.explain import NotFoundError, explain
from pipeline.funnel import calls, calls_line, funnel, levels, levels_table, table
from pipeline.ledger import LedgerError
from pipeline.metakaggle import MetadataError
from pipeline.model_stage import StageStopped
from pipeline.plan import Options, RunError, job_names, jobs, servers_shared_by
from pipeline.progress import watched
from pipeline.recipe import Recipe, RecipeError, load_recipe
from pipeline.run import chosen_units, execute, prepare
from pipeline.run_folder import RunFolder
from pipeline.sources import SourceError
from pipeline.stages.ask import Ask

app = typer.Typer(
    help="From a heap of notebooks to those worth asking about, with their data sets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Out = Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@app.command(
    epilog="Examples:\n\n"
    "    python -m pipeline run --input notebooks/ --data tables/\n\n"
    "    python -m pipeline run --input notebooks/ --data tables/ --model Qwen/Qwen3-32B "
    "--base-url http://gpu:8000/v1 --teacher Qwen/Qwen3-32B --teacher-url http://gpu:8000/v1\n\n"
    "    python -m pipeline run --recipe kaggle-slurm --input meta-kaggle-code/ --metadata meta-kaggle/ --dry-run\n\n"
    "Run the same command again to go on where it was ended. Exit codes: 0 done, 1 an error, 2 wrong usage."
)
def run(
    inputs: Annotated[str, typer.Option("--input", help="A folder, a file, or hf://datasets/OWNER/NAME.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name or the path of a .toml file.")] = "laptop",
    data: Annotated[str, typer.Option(help="A folder of data sets, OWNER+NAME each.")] = "",
    metadata: Annotated[str, typer.Option(help="The folder of Meta Kaggle's CSV files.")] = "",
    out: Out = Path("runs/pipeline"),
    until: Annotated[
        str, typer.Option(help="Stop after this stage. Default: export, or render where no model is named.")
    ] = "",
    model: Annotated[str, typer.Option(help="Model that scores, asks and checks; in place of the recipe's.")] = "",
    base_url: Annotated[str, typer.Option(help="Its servers' base URLs, comma-separated.")] = "",
    teacher: Annotated[str, typer.Option(help="Model that works on the questions; in place of the recipe's.")] = "",
    teacher_url: Annotated[str, typer.Option(help="Its servers' base URLs, comma-separated.")] = "",
    allow_simulated: Annotated[
        bool, typer.Option("--allow-simulated", help="Keep traces whose outputs a model invented.")
    ] = False,
    limit: Annotated[int, typer.Option(help="Read no more than so many notebooks; -1 for all.")] = -1,
    tasks: Annotated[int | None, typer.Option(help="In place of the recipe's number of tasks.")] = None,
    workers: Annotated[int | None, typer.Option(help="In place of the recipe's number of workers.")] = None,
    repartition: Annotated[
        bool, typer.Option(help="Accept other inputs, tasks or settings than the run began with.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Run the stages, or go on with a run that was ended."""
    settings = _with(load_recipe(recipe), tasks=tasks, workers=workers)
    settings = _with_models(settings, asker=(model, base_url), teacher=(teacher, teacher_url))
    if allow_simulated:
        curate = msgspec.structs.replace(settings.curate, allow_simulated=True)
        settings = msgspec.structs.replace(settings, curate=curate)
    options = Options(inputs=_absolute(inputs), data=_absolute(data), metadata=_absolute(metadata), limit=limit)
    folder = RunFolder(out.resolve())
    if dry_run:
        _print_plan(folder, options, settings, until, as_json)
        return
    prepare(folder, options, settings, repartition=repartition)
    plan = jobs(folder, options, settings, until)
    with watched(folder) as watch:
        execute(folder, plan, settings, watch)
    if settings.where == "slurm":
        typer.echo(f"handed in to Slurm: {len(plan)} jobs; see `python -m pipeline status -o {out}`")
    else:
        _print_funnel(funnel(folder), as_json)
        if not as_json and plan[-1].name == "export":
            typer.echo(f"written: {folder.root / 'export'}")


def _with_models(recipe: Recipe, **given: tuple[str, str]) -> Recipe:
    """The recipe with models and addresses from the command line."""
    for role, (name, urls) in given.items():
        changes: dict[str, Any] = {"name": name} if name else {}
        if urls:
            changes |= {"endpoints": tuple(url.strip() for url in urls.split(",")), "serve": ""}
        if changes:
            recipe = msgspec.structs.replace(
                recipe, **{role: msgspec.structs.replace(getattr(recipe, role), **changes)}
            )
    return recipe


def _absolute(path: str) -> str:
    return path if not path or "://" in path else str(Path(path).resolve())


def _with(recipe: Recipe, **changes: int | None) -> Recipe:
    return msgspec.structs.replace(recipe, **{key: value for key, value in changes.items() if value is not None})


def _print_plan(folder: RunFolder, options: Options, recipe: Recipe, until: str, as_json: bool) -> None:
    units = chosen_units(options)
    known = sum(min(unit.items, unit.limit) if unit.limit >= 0 else unit.items for unit in units if unit.items >= 0)
    unknown = sum(unit.items < 0 for unit in units)
    plan: dict[str, Any] = {
        "out": str(folder.root),
        "units": len(units),
        "notebooks": known,
        "units_of_unknown_size": unknown,
        "where": recipe.where,
        "tasks": recipe.tasks,
        "workers": recipe.workers,
        "jobs": job_names(options, recipe, until),
    }
    if "ask" in plan["jobs"]:
        plan["in_flight"] = Ask(folder, recipe.ask, recipe.asker, servers_shared_by(recipe)).in_flight
        plan["models"] = estimate(folder, recipe, known)
    if as_json:
        typer.echo(json.dumps(plan, indent=1))
        return
    models = plan.pop("models", {})
    for key, value in {**plan, **models}.items():
        if isinstance(value, dict):
            typer.echo(
                f"{key:22}" + ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in value.items())
            )
        else:
            typer.echo(f"{key:22}{', '.join(value) if isinstance(value, list) else value}")


def _print_funnel(stages: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(stages, indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(table(stages))


def _existing(out: Path) -> RunFolder:
    folder = RunFolder(out.resolve())
    if not folder.manifest.exists():
        raise RunError(f"{out} holds no run; name the folder that `run --out` was given")
    return folder


@app.command(epilog="Example:\n\n    python -m pipeline status -o runs/pipeline --watch")
def status(
    out: Out = Path("runs/pipeline"),
    watch: Annotated[bool, typer.Option(help="Show it anew every two seconds.")] = False,
    as_json: Json = False,
) -> None:
    """The funnel: how many notebooks each stage took in, let through, rejected and why."""
    folder = _existing(out)
    if not watch:
        _print_funnel(funnel(folder), as_json)
        if not as_json:
            for stage, used in calls(folder).items():
                typer.echo(calls_line(stage, used))
        return
    with Live(table(funnel(folder)), auto_refresh=False) as live:
        while True:
            live.update(table(funnel(folder)), refresh=True)
            time.sleep(2)


@app.command(epilog="Example:\n\n    python -m pipeline questions -o runs/pipeline")
def questions(out: Out = Path("runs/pipeline"), as_json: Json = False) -> None:
    """The questions by level: how many were written, how many each check cost, how many were solved."""
    rows = levels(_existing(out))
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        Console(width=None if sys.stdout.isatty() else 120).print(levels_table(rows))
    else:
        raise RunError(f"{out} has no questions: the stage ask has not begun")


@app.command("explain", epilog="Example:\n\n    python -m pipeline explain a.ipynb b.ipynb -o runs/pipeline")
def explain_pair(
    a: Annotated[str, typer.Argument(help="A notebook's id, or an ending of it that only one has.")],
    b: Annotated[str, typer.Argument(help="The other's.")],
    out: Out = Path("runs/pipeline"),
    as_json: Json = False,
) -> None:
    """Why two notebooks are or are not duplicates."""
    found = explain(_existing(out), a, b)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for key, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], str):
            typer.echo(f"{key}:")
            for line in value:
                typer.echo(f"    {line}")
        else:
            typer.echo(f"{key:22}{value}")


@app.command(epilog="Example:\n\n    python -m pipeline clusters -o runs/pipeline --json")
def clusters(out: Out = Path("runs/pipeline"), as_json: Json = False) -> None:
    """The clusters of near duplicates: how many of which size, and the largest."""
    path = _existing(out).root / "clusters.json"
    if not path.exists():
        raise RunError(f"{path} is not there yet: the stage near has not come that far")
    found = json.loads(path.read_bytes())
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    typer.echo(f"{found['notebooks']:,} notebooks in {found['clusters']:,} clusters; {found['kept']:,} kept")
    typer.echo("sizes: " + ", ".join(f"{size} x {count:,}" for size, count in found["sizes"].items()))
    if found["over_1000"]:
        typer.echo(f"{found['over_1000']} clusters have more than 1,000: look at them for over-merging")
    for cluster in found["largest"]:
        typer.echo(f"{cluster['size']:6,}  kept {', '.join(cluster['kept'])}")


def main() -> None:
    """Run the command line; errors that a person can act on are one line and exit code 1."""
    try:
        app()
    except (RunError, RecipeError, SourceError, MetadataError, LedgerError, StageStopped, ModelSetupError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except NotFoundError as error:
        typer.echo(f"error: {error.args[0]}", err=True)
        sys.exit(1)
    except OSError as error:
        typer.echo(f"error: {error}; what is finished is kept, run again to go on", err=True)
        sys.exit(1)
