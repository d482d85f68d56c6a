"""A run as a whole: what it refuses, what it takes over, and that a kill costs nothing."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import ids, notebook, outcomes, program, run_here, write_zip

from pipeline import stage as stages
from pipeline.cli import main
from pipeline.plan import RunError
from pipeline.recipe import Recipe, RecipeError, load_recipe
from pipeline.run_folder import RunFolder
from pipeline.stages.rules import RuleSettings

CHECKOUT = Path(__file__).resolve().parents[2]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pipeline", *map(str, arguments)]


def content(folder: RunFolder, stage: str) -> dict[str, str]:
    """What the ledgers of a stage hold, byte by byte."""
    return {path.name: path.read_text() for path in folder.ledgers(stage)}


def test_the_funnel_of_a_run(some_notebooks: Path, tmp_path: Path) -> None:
    run = run_here(tmp_path / "run", some_notebooks)
    assert run.tally("read").reasons == {"truncated_json": 5}
    assert run.tally("exact").reasons == {"exact_duplicate": 10}
    assert run.tally("near").reasons == {"near_duplicate": 5}
    assert ids(run, "near") == [f"own{n:02d}.ipynb" for n in range(20)], "the ones with outputs are kept"
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_second_run_does_nothing(some_notebooks: Path, tmp_path: Path) -> None:
    run = run_here(tmp_path / "run", some_notebooks)
    before = {path: path.stat().st_mtime_ns for path in run.parts_folder("near").iterdir()}
    run_here(tmp_path / "run", some_notebooks)
    assert {path: path.stat().st_mtime_ns for path in run.parts_folder("near").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": Recipe(tasks=3, workers=1)}, "number of tasks was 2 and is 3"),
        ({"recipe": Recipe(tasks=2, rules=RuleSettings(min_code_cells=9))}, "recipe's settings differ"),
        ({"limit": 5}, "input files"),
    ],
)
def test_a_run_begun_otherwise_is_refused(
    some_notebooks: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    run_here(tmp_path / "run", some_notebooks)
    with pytest.raises(RunError, match=message):
        run_here(tmp_path / "run", some_notebooks, **change)  # type: ignore[arg-type]
    run_here(tmp_path / "run", some_notebooks, recipe=Recipe(tasks=2, workers=9)), "workers change nothing"


@pytest.mark.parametrize("tasks", [1, 5])
def test_another_number_of_tasks_gives_the_same(some_notebooks: Path, tmp_path: Path, tasks: int) -> None:
    run = run_here(tmp_path / "run", some_notebooks)
    before = content(run, "near")
    run_here(tmp_path / "run", some_notebooks, recipe=Recipe(tasks=tasks, workers=1), repartition=True)
    assert content(run, "near") == before
    fresh = run_here(tmp_path / "fresh", some_notebooks, recipe=Recipe(tasks=tasks, workers=1))
    assert content(fresh, "near") == before


def test_added_and_removed_files(some_notebooks: Path, tmp_path: Path) -> None:
    run_here(tmp_path / "run", some_notebooks, until="rules")
    (some_notebooks / "own99.ipynb").write_bytes(notebook(*program(99)))
    (some_notebooks / "own03.ipynb").unlink()
    with pytest.raises(RunError, match="input files"):
        run_here(tmp_path / "run", some_notebooks, until="rules")
    run = run_here(tmp_path / "run", some_notebooks, until="rules", repartition=True)
    fresh = run_here(tmp_path / "fresh", some_notebooks, until="rules")
    for stage in ("read", "exact", "near", "rules"):
        assert ids(run, stage) == ids(fresh, stage)
        assert len(ids(run, stage)) == len(set(ids(run, stage)))
    assert "own99.ipynb" in ids(run, "near")
    assert "copy03.ipynb" in ids(run, "near"), "the copy stands in for the one removed"


def test_an_added_zip_leaves_the_other_units_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_zip(folder / "a.zip", {f"0000/000/{n}.ipynb": notebook(*program(n)) for n in range(6)})
    run_here(tmp_path / "run", folder, until="rules")
    write_zip(folder / "b.zip", {f"0001/000/{n}.ipynb": notebook(*program(n)) for n in range(4, 9)})
    done: list[str] = []
    decide = stages.Stage._outcome
    monkeypatch.setattr(
        stages.Stage,
        "_outcome",
        lambda self, item, known: (done.append(f"{self.name} {item.id}"), decide(self, item, known))[1],
    )
    run = run_here(tmp_path / "run", folder, until="rules", repartition=True)
    assert [name for name in done if name.startswith(("read", "rules")) and "a.zip" in name] == []
    assert len(ids(run, "near")) == 9


def test_a_stage_that_mostly_fails_stops_the_run(
    some_notebooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.stages import rules

    def broken(code: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(rules, "find_reads", broken)
    with pytest.raises(RunError, match="20 of 20 items failed"):
        run_here(tmp_path / "run", some_notebooks, until="rules")
    monkeypatch.undo()
    assert run_here(tmp_path / "run", some_notebooks, until="rules").tally("rules").failed == 0


def test_a_full_disk_stops_and_the_rest_is_done_later(some_notebooks: Path, tmp_path: Path) -> None:
    fresh = run_here(tmp_path / "fresh", some_notebooks)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for most in (100, 700, 2000, 5000, 9000):  # a write beyond so many bytes fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            run_here(tmp_path / "run", some_notebooks)
        except OSError:
            pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)
    run = run_here(tmp_path / "run", some_notebooks)
    for stage in ("read", "exact", "near"):
        assert ids(run, stage) == ids(fresh, stage)
        assert content(run, stage) == content(fresh, stage)


def test_a_really_full_disk(some_notebooks: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small disk")
    try:
        with pytest.raises(OSError, match="No space left"):
            run_here(disk / "run", some_notebooks)
        assert not outcomes(RunFolder(disk / "run"), "near")
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert len(ids(run_here(disk / "run", some_notebooks), "near")) == 20
    finally:
        subprocess.run(["umount", disk], check=True)


def kill_and_resume(inputs: Path, work: Path, kills: int, seed: int, start: Callable[[Path], int]) -> None:
    """Kill a run and all its processes at random moments, go on each time, and compare with one that was left alone.

    Args:
        start: begins or goes on with the run in a folder; gives the id of its process group.
    """
    fresh = run_here(work / "fresh", inputs, until="rules")
    began = time.monotonic()
    assert ended(start(work / "timed"), None)
    whole_s = time.monotonic() - began
    rng = random.Random(seed)
    killed = 0
    while killed < kills:
        process = start(work / "run")
        if ended(process, rng.uniform(0.1, 0.9) * whole_s):
            shutil.rmtree(work / "run")  # it came to its end: once more from the beginning
        else:
            killed += 1
    assert ended(start(work / "run"), None)
    run = RunFolder(work / "run")
    for stage in ("read", "exact", "near", "rules"):
        assert ids(run, stage) == ids(fresh, stage)
        assert content(run, stage) == content(fresh, stage)
        named = {path.name for path in run.all_parts(stage)}
        assert {path.name for path in run.parts_folder(stage).iterdir()} == named


def ended(process: int, within_s: float | None) -> bool:
    """Whether a process ended well in this time; else it is killed with its whole group."""
    deadline = None if within_s is None else time.monotonic() + within_s
    while deadline is None or time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            assert status == 0
            return True
        time.sleep(0.002)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


@pytest.fixture
def zips(tmp_path: Path) -> Path:
    """Enough work that a kill falls into the middle of it."""
    folder = tmp_path / "zips"
    folder.mkdir()
    for z in range(4):
        members = {f"{z:04d}/000/{n}.ipynb": notebook(*program(n if n % 3 else n * 4 + z, 60)) for n in range(100)}
        write_zip(folder / f"{z}.zip", members)
    return folder


@pytest.fixture
def quick_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill leaves the same there, and a thousand syncs cost nothing."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.timeout(600)
def test_killed_at_thirty_random_moments(zips: Path, quick_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks one after the other in one process, a commit every 30 items."""
    monkeypatch.setattr(stages.Stage, "batch_items", 30)

    def start(out: Path) -> int:
        process = os.fork()
        if process == 0:
            code = 1
            try:
                os.setpgid(0, 0)
                run_here(out, zips, until="rules")
                code = 0
            finally:
                os._exit(code)
        with contextlib.suppress(OSError):  # the child did it, or is gone
            os.setpgid(process, process)
        return process

    kill_and_resume(zips, quick_disk, kills=30, seed=1, start=start)


@pytest.mark.soak
def test_the_program_killed_at_thirty_random_moments(zips: Path, tmp_path: Path) -> None:
    """As a user starts it, with datatrove's executor and its pool of processes."""

    def start(out: Path) -> int:
        arguments = command("run", "--input", zips, "--until", "rules", "-o", out, "--tasks", "2")
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        return os.posix_spawn(sys.executable, arguments, environment, setpgroup=0, file_actions=quiet)

    kill_and_resume(zips, tmp_path, kills=30, seed=2, start=start)


def test_the_command_line(
    some_notebooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        printed = capfd.readouterr()
        return subprocess.CompletedProcess("", int(left.value.code or 0), printed.out, printed.err)

    plan = call("run", "--input", some_notebooks, "-o", out, "--dry-run", "--json")
    assert json.loads(plan.stdout)["notebooks"] == 40
    assert not out.exists()
    ran = call("run", "--input", some_notebooks, "-o", out, "--until", "near", "--json")
    assert ran.returncode == 0, ran.stderr
    stages = {row["stage"]: row for row in json.loads(call("status", "-o", out, "--json").stdout)}
    assert json.loads(ran.stdout) == list(stages.values())
    assert (stages["near"]["done"], stages["near"]["rejected"]) == (20, 5)
    assert [row["adds_up"] for row in stages.values()] == [None, True, True]
    assert "near_duplicate 5" in " ".join(call("status", "-o", out).stdout.split())
    told = json.loads(call("explain", "own00.ipynb", "renamed00.ipynb", "-o", out, "--json").stdout)
    assert told["verdict"].startswith("near duplicates")
    assert told["fate_b"].startswith("near: rejected (near_duplicate: ")
    assert json.loads(call("clusters", "-o", out, "--json").stdout)["sizes"] == {"1": 15, "2": 5}
    for wrong in (
        ("run", "--input", tmp_path / "nowhere", "-o", tmp_path / "x"),
        ("run", "--input", some_notebooks, "-o", tmp_path / "x", "--recipe", "fridge"),
        ("run", "--input", some_notebooks, "-o", out, "--tasks", "7"),
        ("run", "--input", some_notebooks, "-o", tmp_path / "x", "--until", "later"),
        ("status", "-o", tmp_path),
        ("explain", "own00", "nothing", "-o", out),
    ):
        failed = call(*wrong)
        assert failed.returncode == 1, wrong
        assert failed.stderr.startswith("error: "), failed.stderr
        assert "Traceback" not in failed.stderr


def test_recipes(tmp_path: Path) -> None:
    assert load_recipe("laptop").where == "local"
    assert load_recipe("kaggle-slurm").tasks == 191
    assert load_recipe("kaggle-ray").fetch.online
    path = tmp_path / "mine.toml"
    path.write_text("tasks = 3\n[near]\nthreshold = 0.7\n")
    assert load_recipe(str(path)).near.threshold == 0.7
    path.write_text("[near]\ntreshold = 0.7\n")
    with pytest.raises(RecipeError, match="treshold"):
        load_recipe(str(path))
    with pytest.raises(RecipeError, match="laptop"):
        load_recipe("desktop")


def test_data_that_comes_later_is_seen(tmp_path: Path) -> None:
    folder, data = tmp_path / "in", tmp_path / "data"
    for path in (folder, data / "me+repo"):
        path.mkdir(parents=True)
    (folder / "a.ipynb").write_bytes(notebook(*program(1)))
    (folder / "manifest.jsonl").write_text('{"file": "a.ipynb", "repo": "me/repo", "path": "nb/a.ipynb"}\n')
    run = run_here(tmp_path / "run", folder, until="render", data=str(data))
    assert outcomes(run, "data")["a.ipynb"].reason == "file_not_found"
    (data / "me+repo" / "data.csv").write_text("a\n1\n")
    assert ids(run_here(tmp_path / "run", folder, until="render", data=str(data)), "render") == ["a.ipynb"]


def test_other_settings_of_an_early_stage_undo_the_later_ones(
    some_notebooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.stages.read import Read

    run = run_here(tmp_path / "run", some_notebooks, until="rules")
    before = content(run, "rules")
    monkeypatch.setattr(Read, "version", Read.version + 1)
    run_here(tmp_path / "run", some_notebooks, until="rules", repartition=True)
    after = content(run, "rules")
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
