"""Runs over tasks whose tables are missing, from the command line: refused, skipped and counted, or simulated."""

import json
from pathlib import Path

import pytest
from servers import Answer, ScriptedServer, answered, completion, ran
from typer.testing import CliRunner

from jupyter_env.answer import Integer
from jupyter_env.cli import app
from jupyter_env.runfile import RunConfig, read_records
from jupyter_env.task import DataFile, Task, TaskDataError, TaskError, TaskPool


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """One task with its table, one without."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "here.csv").write_text("a\n1\n2\n")
    here = DataFile.of("here.csv", tmp_path / "data")
    gone = DataFile(path="gone.csv", sha256="0" * 64)
    tasks = [
        Task(id="gone", question="How many sales?", answer=Integer(value=7), files=(gone,)),
        Task(id="here", question="How many rows?", answer=Integer(value=2), files=(here,)),
    ]
    TaskPool(tasks, tmp_path / "data").save(tmp_path / "tasks.jsonl", with_data=False)
    return tmp_path / "tasks.jsonl"


def models(body: dict, number: int) -> Answer:
    """Both the solver and its simulator, as one server may serve both."""
    if not body.get("tools"):
        return completion('<output_cell status="ok">\n7\n</output_cell>')
    path = "gone" if "gone.csv" in body["messages"][1]["content"] else "here"
    if len(body["messages"]) == 2:
        return ran(f"import pandas as pd\nprint(len(pd.read_csv('data/{path}.csv')))")
    return answered(body["messages"][-1]["content"])


def run(pool: Path, *options: str) -> tuple[int, str]:
    arguments = ["rollout", str(pool), "--runs", str(pool.parent / "runs"), "--name", "x", "--json", *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return done.exit_code, done.output


def test_an_error_by_default(pool: Path):
    with pytest.raises(TaskDataError, match=r"gone\.csv is missing"):
        run(pool)


def test_skipped_and_counted(pool: Path):
    code, said = run(pool, "--missing-data", "skip")
    assert code == 0 and "1 of 2 tasks are skipped: their tables are missing." in said
    assert json.loads(said[said.index("{") :])["episodes"] == 1


def test_simulated_and_marked_from_run_to_report(pool: Path):
    with ScriptedServer(models) as server:
        options = ["--model", "tiny", "--base-url", server.url, "--missing-data", "simulate", "--simulator", "tiny"]
        code, said = run(pool, *options)
    assert code == 0, said
    folder = pool.parent / "runs" / "x"
    records = {record.task_id: record for record in read_records(folder / "episodes.jsonl")}
    assert [records[name].provenance for name in ("gone", "here")] == ["simulated", "real"]
    assert [records[name].reward for name in ("gone", "here")] == [1.0, 1.0]
    assert json.loads(said[said.index("{") :])["simulated"] == 1
    assert json.loads((folder / "run.json").read_text())["simulator"]["model"] == "tiny"
    notebook = (folder / "notebooks" / "gone.tiny.0.ipynb").read_text()
    assert "Simulated" in notebook and "Simulated" not in (folder / "notebooks" / "here.tiny.0.ipynb").read_text()
    assert '"provenance":"simulated"' in (folder / "report.html").read_text()
    assert (folder / "data" / "here.csv").exists() and not (folder / "data" / "gone.csv").exists()


def test_choices_that_do_not_go_together(pool: Path):
    for options in (["--missing-data", "simulate"], ["--simulator", "tiny"], ["--missing-data", "guess"]):
        with pytest.raises(TaskError):
            run(pool, *options)
    with pytest.raises(TaskError, match="E2B_API_KEY"):
        run(pool, "--missing-data", "skip", "--e2b")


def test_runs_without_a_simulator_keep_their_hash():
    config = RunConfig(pool="p", agents={"a": {"scripted": "a"}}, budget={"max_turns": 25}, versions={"verifier": 1})
    assert config.hash == "89eba4e9e1f41dbe"
