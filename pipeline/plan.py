"""What a run does: its jobs in order, each with its steps and the tasks it is cut into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
from datatrove.pipeline.base import PipelineStep

from pipeline.export import Export
from pipeline.metakaggle import KernelTable
from pipeline.models import ModelSettings
from pipeline.recipe import Recipe, Slurm
from pipeline.run_folder import RunFolder
from pipeline.stage import Stage
from pipeline.stages.ask import Ask
from pipeline.stages.check import Check
from pipeline.stages.curate import Curate
from pipeline.stages.data import Data
from pipeline.stages.exact import Exact, ExactMatch
from pipeline.stages.fetch import Fetch, WorkList
from pipeline.stages.near import Near, NearMatch
from pipeline.stages.read import Read
from pipeline.stages.render import Render
from pipeline.stages.rules import Rules
from pipeline.stages.signatures import NotebookSignature
from pipeline.stages.traces import Traces
from pipeline.stages.unique import Unique, UniqueMatch


class RunError(RuntimeError):
    """A run that can't go on; the message says what to do."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was started with beside its recipe."""

    inputs: str
    data: str = ""
    """A folder of data sets; empty where they are fetched, or where no data set is looked for."""
    metadata: str = ""
    """The folder of Meta Kaggle's CSV files."""
    limit: int = -1


class Job(msgspec.Struct, frozen=True):
    """Steps that each task does one after the other for its units, and into how many tasks the job is cut."""

    name: str
    steps: tuple[PipelineStep, ...]
    tasks: int

    @property
    def stage(self) -> Stage | None:
        """The first step, where it has a ledger."""
        return self.steps[0] if isinstance(self.steps[0], Stage) else None


def job_names(options: Options, recipe: Recipe, until: str = "") -> list[str]:
    """The jobs of a run in order, up to a stage; empty for as far as it can come.

    Raises:
        RunError: there is no such stage in this run.
    """
    names = ["read", "exact-match", "exact", "near-match", "near", "rules"]
    if recipe.fetch.online and not options.data:
        names += ["fetch-list", "fetch"]
    names += ["data", "render"]
    if recipe.asker.name:
        names += ["ask", "check", "unique-match", "unique"]
        names += ["traces", "curate"] if recipe.teacher.name else []
        names += ["export"]
    last = until or recipe.last_stage
    if last not in names:
        later = "" if recipe.asker.name else "; those after render need a model (--model, or [asker] in the recipe)"
        raise RunError(f"--until {last}: expected one of {', '.join(names)}{later}")
    return names[: names.index(last) + 1]


def jobs(folder: RunFolder, options: Options, recipe: Recipe, until: str = "") -> list[Job]:
    """The steps of a run in order, up to a stage; empty for as far as it can come.

    Raises:
        RunError: there is no such stage in this run, or what it needs was not named.
    """
    names = job_names(options, recipe, until)
    kernels = KernelTable(folder.folder("metadata")) if options.metadata else None
    datasets = Path(options.data).resolve() if options.data else folder.root / "datasets"
    n = recipe.tasks
    if "fetch" in names and kernels is None:
        raise RunError(
            "data sets are fetched by Meta Kaggle's tables; name their folder with --metadata, or give --data"
        )
    makers: dict[str, Callable[[], tuple[tuple[PipelineStep, ...], int]]] = {
        "read": lambda: ((Read(folder, kernels, recipe.max_bytes),), n),
        "exact-match": lambda: ((ExactMatch(folder),), 1),
        "exact": lambda: ((Exact(folder), NotebookSignature(folder, recipe.near)), n),
        "near-match": lambda: ((NearMatch(folder, recipe.near),), 1),
        "near": lambda: ((Near(folder, recipe.near),), n),
        "rules": lambda: ((Rules(folder, recipe.rules),), n),
        "fetch-list": lambda: ((WorkList(folder, cast(KernelTable, kernels)),), 1),
        "fetch": lambda: ((Fetch(folder, recipe.fetch),), recipe.fetch.shares),
        "data": lambda: ((Data(folder, datasets, kernels, keep_missing=recipe.missing_data == "keep"),), n),
        "render": lambda: ((Render(folder, max_bytes=recipe.max_bytes),), n),
        "ask": lambda: ((Ask(folder, recipe.ask, recipe.asker, servers_shared_by(recipe)),), _tasks(recipe, "ask")),
        "check": lambda: ((Check(folder, recipe.check, datasets),), n),
        "unique-match": lambda: ((UniqueMatch(folder),), 1),
        "unique": lambda: ((Unique(folder),), n),
        "traces": lambda: ((Traces(folder, recipe.traces, _tracers(recipe), datasets),), _tasks(recipe, "traces")),
        "curate": lambda: ((Curate(folder, recipe.curate),), n),
        "export": lambda: ((_export(folder, recipe, datasets),), 1),
    }
    return [Job(name, *makers[name]()) for name in names]


def servers_shared_by(recipe: Recipe) -> int:
    """How many processes ask the same servers at a time: none shares one that it has started itself."""
    return 1 if recipe.asker.serve else recipe.tasks if recipe.workers < 0 else min(recipe.tasks, recipe.workers)


def slurm_of(recipe: Recipe, job: str) -> Slurm:
    """How Slurm runs a job: those that ask models have settings of their own."""
    special = {"ask": recipe.asker_slurm, "traces": recipe.teacher_slurm}.get(job)
    return special or recipe.slurm


def _tasks(recipe: Recipe, job: str) -> int:
    return (slurm_of(recipe, job).tasks if recipe.where == "slurm" else 0) or recipe.tasks


def _tracers(recipe: Recipe) -> dict[str, ModelSettings]:
    models = {"teacher": recipe.teacher}
    if recipe.traces.missing_data == "simulate":
        models["simulator"] = recipe.simulator if recipe.simulator.name else recipe.asker
    return models


def _export(folder: RunFolder, recipe: Recipe, datasets: Path) -> Export:
    used = {"asker": recipe.asker, **(_tracers(recipe) if recipe.teacher.name else {})}
    models = {role: model.identity for role, model in used.items()}
    traced = bool(recipe.teacher.name)
    return Export(folder, recipe.export, datasets, recipe.curate.limits, models, with_traces=traced)
