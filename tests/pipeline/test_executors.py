"""The same output wherever it runs: datatrove's local, Ray and Slurm executors."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import ids, run_here, write_zip

from pipeline.plan import Options, jobs
from pipeline.recipe import Recipe, Slurm, load_recipe
from pipeline.run import check, execute, make_executor, prepare
from pipeline.run_folder import RunFolder

CHECKOUT = Path(__file__).resolve().parents[2]


def contents(folder: RunFolder, until: str) -> dict[str, bytes]:
    """All ledgers of a run."""
    return {
        f"{stage}/{path.name}": path.read_bytes()
        for stage in ("read", "exact", "near", until)
        for path in folder.ledgers(stage)
    }


@pytest.fixture
def zips(some_notebooks: Path, tmp_path: Path) -> Path:
    """Three units, so that the tasks have something to share."""
    folder = tmp_path / "zips"
    folder.mkdir()
    files = sorted(some_notebooks.iterdir())
    for n in range(3):
        write_zip(folder / f"{n}.zip", {f"{n:04d}/000/{path.name}": path.read_bytes() for path in files[n::3]})
    return folder


def test_local_with_a_pool(zips: Path, tmp_path: Path) -> None:
    expected = run_here(tmp_path / "here", zips, until="rules")
    run = RunFolder(tmp_path / "run")
    options, recipe = Options(inputs=str(zips)), Recipe(tasks=2, workers=2)
    prepare(run, options, recipe)
    execute(run, jobs(run, options, recipe, "rules"), recipe)
    assert contents(run, "rules") == contents(expected, "rules")


@pytest.mark.soak
def test_ray(zips: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    expected = run_here(tmp_path / "here", zips, until="rules")
    recipe = tmp_path / "ray.toml"
    recipe.write_text('where = "ray"\ntasks = 2\nworkers = 2\n')
    arguments = ["run", "--input", zips, "--until", "rules", "-o", tmp_path / "run", "--recipe", recipe]
    ran = subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr + (tmp_path / "run" / "logs" / "console.log").read_text()[-3000:]
    assert contents(RunFolder(tmp_path / "run"), "rules") == contents(expected, "rules")


def test_slurm_scripts(zips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be handed to `sbatch`: one array a job, each after the one before."""
    calls = tmp_path / "calls"
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/bash\necho "$*" >> {calls}\ncat "${{@: -1}}" >> {calls}\n'
        f'echo "Submitted batch job $(wc -l < {calls})"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    run, options = RunFolder(tmp_path / "run"), Options(inputs=str(zips))
    recipe = load_recipe("kaggle-slurm")
    prepare(run, options, recipe)
    execute(run, jobs(run, Options(inputs=str(zips), data="x"), recipe, "near"), recipe)
    text = calls.read_text()
    assert re.findall(r"#SBATCH --array=(\S+)", text)[::2] == [
        "0-190%128",
        "0-0%128",
        "0-190%128",
        "0-0%128",
        "0-190%128",
    ]
    assert len(re.findall(r"--dependency=afterok:\d+ ", text)) >= 4
    assert f"export PYTHONPATH={CHECKOUT}" in text
    assert "launch_pickled_pipeline" in text


def test_slurm_scripts_of_the_models_stages(zips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that start a server ask for its GPUs, in tasks of their own number; the others ask for none."""
    run, options, recipe = RunFolder(tmp_path / "run"), Options(inputs=str(zips), data="x"), load_recipe("kaggle-slurm")
    prepare(run, options, recipe)
    found = {}
    for job in jobs(run, options, recipe, "export"):
        executor = make_executor(run, job, recipe, None)
        found[job.name] = (job.tasks, executor._sbatch_args.get("gres"), executor.partition)
    assert found["ask"] == (32, "gpu:h100:1", "gpu")
    assert found["traces"] == (16, "gpu:h100:8", "gpu")
    assert found["check"] == (191, None, "cpu")
    assert found["export"] == (1, None, "cpu")


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[None]:
    """A Slurm cluster of this machine alone: munged, slurmctld, slurmd."""
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
        pytest.skip("needs root and the packages slurmctld, slurmd, slurm-client and munge")
    from slurm_cluster import one_machine_cluster

    with one_machine_cluster(tmp_path / "slurm"):
        yield


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_slurm(slurm: None, zips: Path, tmp_path: Path) -> None:
    expected = run_here(tmp_path / "here", zips, until="rules")
    run, options = RunFolder(tmp_path / "run"), Options(inputs=str(zips))
    recipe = Recipe(where="slurm", tasks=2, workers=2, slurm=Slurm(partition="all", time="00:10:00", mem_per_cpu_gb=1))
    prepare(run, options, recipe)
    plan = jobs(run, options, recipe, "rules")
    execute(run, plan, recipe)
    deadline = time.monotonic() + 600
    while subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout.strip():
        assert time.monotonic() < deadline, subprocess.run(["squeue"], capture_output=True, text=True).stdout
        time.sleep(1)
    for job in plan:
        if job.stage:
            check(run, job.stage)
    assert contents(run, "rules") == contents(expected, "rules")
    assert ids(run, "near") == ids(expected, "near")


def test_executors_leave_completion_to_the_ledger(zips: Path, tmp_path: Path) -> None:
    run, options = RunFolder(tmp_path / "run"), Options(inputs=str(zips))
    for where in ("local", "ray", "slurm"):
        recipe = Recipe(where=where)
        prepare(run, options, recipe, repartition=True)
        for job in jobs(run, options, recipe, "near"):
            assert make_executor(run, job, recipe, None).skip_completed is False
