"""The models' stages give the same output on a pool of processes, on Ray and in one process; and a real, bad model."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from authored import sources, write_inputs
from runs import outcomes, run_here
from scripted import Script
from servers import ScriptedServer
from test_run import content

from pipeline.models import ModelSettings
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder

CHECKOUT = Path(__file__).resolve().parents[2]
STAGES = ("ask", "check", "unique", "traces", "curate")


@pytest.fixture
def expected(tmp_path: Path) -> RunFolder:
    """Three notebooks, in one process."""
    write_inputs(tmp_path / "in", tmp_path / "data", sources()[:3])
    with ScriptedServer(Script()) as server:
        model = ModelSettings(name="tiny", endpoints=(server.url,))
        recipe = Recipe(tasks=1, workers=1, asker=model, teacher=model)
        return run_here(tmp_path / "here", tmp_path / "in", until="export", recipe=recipe, data=str(tmp_path / "data"))


def run_as_a_user(tmp_path: Path, recipe: str, url: str) -> RunFolder:
    """`python -m pipeline run`, with the recipe's text."""
    path = tmp_path / "recipe.toml"
    path.write_text(recipe)
    models = ["--model", "tiny", "--base-url", url, "--teacher", "tiny", "--teacher-url", url]
    where = ["--input", tmp_path / "in", "--data", tmp_path / "data", "-o", tmp_path / "run", "--recipe", path]
    ran = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", *map(str, [*where, *models])],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "no_proxy": "127.0.0.1"},
    )
    log = tmp_path / "run" / "logs" / "console.log"
    assert ran.returncode == 0, ran.stderr + (log.read_text()[-3000:] if log.exists() else "")
    assert f"written: {tmp_path / 'run' / 'export'}" in ran.stdout
    return RunFolder(tmp_path / "run")


def assert_the_same(run: RunFolder, expected: RunFolder) -> None:
    for stage in STAGES:
        assert content(run, stage) == content(expected, stage), stage
    for name in ("sft/thinking/train.parquet", "pool/train.jsonl"):
        assert (run.root / "export" / name).read_bytes() == (expected.root / "export" / name).read_bytes(), name


@pytest.mark.soak
def test_a_pool_of_processes(expected: RunFolder, tmp_path: Path) -> None:
    with ScriptedServer(Script()) as server:
        run = run_as_a_user(tmp_path, 'where = "local"\ntasks = 2\nworkers = 2\n', server.url)
    assert_the_same(run, expected)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_ray(expected: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    with ScriptedServer(Script()) as server:
        run = run_as_a_user(tmp_path, 'where = "ray"\ntasks = 2\nworkers = 2\n', server.url)
    assert_the_same(run, expected)


@pytest.mark.serve
@pytest.mark.timeout(900)
def test_a_real_model_that_knows_nothing_of_this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens out of 0.2M weights behind transformers serve: whatever they say, it ends with reasons."""
    pytest.importorskip("torch", reason="needs the extra `transformers`")
    write_inputs(tmp_path / "in", tmp_path / "data", sources()[:3])
    tiny = tmp_path / "tiny"
    subprocess.run([sys.executable, CHECKOUT / "tests" / "tiny_model.py", tiny], check=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = shlex.join([str(Path(sys.executable).with_name("transformers")), "serve", "--port", "{port}"])
    model = ModelSettings(name=str(tiny), serve=command, max_tokens=48, temperature=1.0, max_retries=1)
    recipe = Recipe(tasks=1, workers=1, asker=model, teacher=model, max_failed=1.0)
    run = run_here(tmp_path / "run", tmp_path / "in", until="export", recipe=recipe, data=str(tmp_path / "data"))
    found = {name: (item.state, item.reason) for name, item in outcomes(run, "ask").items()}
    print(found)
    assert len(found) == 3
    assert all(state == "rejected" and reason.startswith("reply_") for state, reason in found.values()), found
    assert "0 questions" in (run.root / "export" / "README.md").read_text()
