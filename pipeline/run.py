"""A run: the stages in order, on datatrove's executors, each checked before the next begins."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import multiprocess
import xxhash
from datatrove.executor.base import PipelineExecutor

from pipeline import ledger, metakaggle
from pipeline.ledger import FAILED, LedgerError, Tally
from pipeline.order import CLASSES, STAGES
from pipeline.parts import write_aside
from pipeline.plan import Job, Options, RunError, slurm_of
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder, Unit
from pipeline.sources import find_units
from pipeline.stage import Stage
from pipeline.stages.fetch import Fetch


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a resumed run must agree with."""

    inputs: str
    """Digest of the units and the metadata: names, sizes, times or checksums of all files."""
    world_size: int
    configuration: str
    """Digest of the recipe, less where and with how many workers it runs."""
    versions: dict[str, int]
    options: Options
    recipe: Recipe


def read_manifest(folder: RunFolder) -> Manifest:
    """What the run was started with."""
    return msgspec.json.decode(folder.manifest.read_bytes(), type=Manifest)


def prepare(folder: RunFolder, options: Options, recipe: Recipe, *, repartition: bool = False) -> Manifest:
    """List the input and write the manifest, or check it against the one that is there.

    Raises:
        RunError: the run was started with something else; `repartition` accepts that.
        SourceError, MetadataError: the input or the metadata can't be read.
    """
    units = chosen_units(options)
    tables = metakaggle.digest_of(Path(options.metadata)) if options.metadata else ""
    manifest = Manifest(
        inputs=xxhash.xxh3_128_hexdigest(msgspec.json.encode([units, tables])),
        world_size=recipe.tasks,
        configuration=_configuration(recipe),
        versions={stage.name: stage.version for stage in CLASSES},
        options=options,
        recipe=recipe,
    )
    if folder.manifest.exists() and not repartition:
        _check_same(msgspec.json.decode(folder.manifest.read_bytes(), type=Manifest), manifest, folder)
    folder.root.mkdir(parents=True, exist_ok=True)
    if options.metadata:
        metakaggle.prepare(Path(options.metadata), folder.folder("metadata"))
    write_aside(folder.units_file, b"".join(msgspec.json.encode(unit) + b"\n" for unit in units))
    write_aside(folder.manifest, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    _drop_others(folder, {unit.name for unit in units})
    return manifest


def chosen_units(options: Options) -> list[Unit]:
    """The units of the input, no more than the limit asks for.

    Raises:
        SourceError: the input can't be read.
    """
    units, limit = find_units(options.inputs), options.limit
    if limit < 0:
        return units
    chosen: list[Unit] = []
    for unit in units:
        if limit <= 0:
            break
        take = limit if unit.items < 0 else min(unit.items, limit)
        chosen.append(msgspec.structs.replace(unit, limit=take))
        limit -= take
    return chosen


def _configuration(recipe: Recipe) -> str:
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(recipe.replies_depend_on, order="sorted"))


def _check_same(old: Manifest, new: Manifest, folder: RunFolder) -> None:
    changes = []
    if old.inputs != new.inputs:
        changes.append(f"the input files (in {new.options.inputs}) are not those it began with")
    if old.world_size != new.world_size:
        changes.append(f"the number of tasks was {old.world_size} and is {new.world_size}")
    if old.configuration != new.configuration:
        changes.append("the recipe's settings differ")
    if old.versions != new.versions:
        changed = [name for name, version in new.versions.items() if old.versions.get(name) != version]
        changes.append(f"newer stages: {', '.join(changed)}")
    if old.options != new.options:
        fields = [f for f in Options.__struct_fields__ if getattr(old.options, f) != getattr(new.options, f)]
        changes.append("; ".join(f"--{f} was {getattr(old.options, f)!r}" for f in fields))
    if changes:
        raise RunError(
            f"{folder.root} holds a run that was started otherwise: {'; '.join(changes)}. "
            "With --repartition its finished work is kept where it still holds and the rest is done again; "
            "or give another folder with --out"
        )


def _drop_others(folder: RunFolder, names: set[str]) -> None:
    """Remove what is left of units that the input no longer has."""
    for stage in STAGES:
        if stage == Fetch.name:
            continue
        for path in folder.ledgers(stage):
            if path.stem not in names:
                for part in folder.parts(stage, path.stem):
                    part.unlink(missing_ok=True)
                path.unlink()


def execute(folder: RunFolder, plan: list[Job], recipe: Recipe, watch: Callable[[Job], Any] = lambda job: None) -> None:
    """Run the jobs here or on Ray one after the other, each checked at its end; on Slurm hand them all in at once.

    Args:
        watch: called before each job; gives a callable that is called at its end.

    Raises:
        LedgerError: an item has no outcome.
        RunError: too many items failed.
    """
    before: PipelineExecutor | None = None
    for job in plan:
        executor = make_executor(folder, job, recipe, before)
        ended = watch(job)
        try:
            executor.run()
        finally:
            if ended:
                ended()
        if recipe.where == "slurm":
            before = executor
        elif job.stage:
            check(folder, job.stage, recipe.max_failed)


def check(folder: RunFolder, stage: Stage, max_failed: float = 1.0) -> Tally:
    """Prove that each item that came into a stage has one outcome, and that as many came as the stage before gave.

    Raises:
        LedgerError: it is not so.
        RunError: more than `max_failed` of the items failed.
    """
    total, came = Tally(), 0
    for unit in stage.units():
        path = folder.ledger(stage.name, unit.name)
        lines, _ = ledger.read_lines(path)
        if not lines or lines[-1].end is None:
            raise LedgerError(
                f"stage {stage.name} did not finish unit {unit.name}; its log is in {folder.root / 'logs'}"
            )
        came += lines[-1].end.items
        total.add(ledger.tally(path))
    given = folder.given(stage.upstream, stage.expands) if stage.upstream else came
    if total.items != came or came != given:
        raise LedgerError(
            f"stage {stage.name}: {given:,} items were given, {came:,} came in and {total.items:,} have an outcome"
        )
    if came and total.failed > max_failed * came:
        examples = {reason: count for reason, count in total.reasons.items() if reason.startswith(FAILED)}
        raise RunError(
            f"stage {stage.name}: {total.failed:,} of {came:,} items failed, more than {max_failed:.0%} ({examples}). "
            "Mend the cause and run again: failed items are tried again"
        )
    return total


def make_executor(folder: RunFolder, job: Job, recipe: Recipe, before: PipelineExecutor | None) -> PipelineExecutor:
    """datatrove's executor for a job. Its completion marks are off: the ledger knows better."""
    logs = str(folder.root / "logs" / job.name)
    if recipe.where == "local":
        from datatrove.executor.local import LocalPipelineExecutor

        workers = min(job.tasks, recipe.workers) if recipe.workers > 0 else job.tasks
        if job.tasks > 1:  # with one unit there is nothing to share, and a pool takes seconds to start
            workers = max(1, min(workers, len(job.stage.units() if job.stage else folder.units())))
        multiprocess.set_forkserver_preload(["pipeline.cli"])
        return LocalPipelineExecutor(list(job.steps), job.tasks, workers, logs, skip_completed=False)
    if recipe.where == "ray":
        from datatrove.executor.ray import RayPipelineExecutor

        return RayPipelineExecutor(
            list(job.steps), job.tasks, recipe.workers, skip_completed=False, logging_dir=logs, mem_per_cpu_gb=1
        )
    from datatrove.executor.slurm import SlurmPipelineExecutor

    slurm = slurm_of(recipe, job.name)
    checkout = Path(__file__).resolve().parent.parent
    lines = (
        slurm.env_command,
        f"export PYTHONPATH={checkout}:$PYTHONPATH",
        f"export PATH={Path(sys.prefix)}/bin:$PATH",
    )
    return SlurmPipelineExecutor(
        list(job.steps),
        job.tasks,
        time=slurm.time,
        partition=slurm.partition,
        cpus_per_task=slurm.cpus_per_task,
        mem_per_cpu_gb=slurm.mem_per_cpu_gb,
        tasks_per_job=slurm.tasks_per_job,
        workers=recipe.workers,
        job_name=f"notebooks-{job.name}",
        qos=slurm.qos,
        env_command="\n".join(line for line in lines if line),
        sbatch_args=dict(slurm.sbatch_args),
        depends=before,
        logging_dir=logs,
        skip_completed=False,
    )


def total_of(folder: RunFolder, stage: Stage) -> int | None:
    """How many items a stage has before it; none where only reading tells."""
    if stage.name == "read":
        counts = [unit.limit if unit.limit >= 0 else unit.items for unit in folder.units()]
        return sum(counts) if min(counts, default=0) >= 0 else None
    return folder.given(stage.upstream, stage.expands) if stage.upstream else None
