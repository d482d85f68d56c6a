"""Notebooks whose tables are not here: a model stands in for the interpreter, which is marked and asked for."""

import json
from pathlib import Path

import pytest
from authored import sources, write_inputs
from runs import ids, outcomes, run_here
from scripted import Inventing, is_inventing
from servers import Answer, Behave, ScriptedServer, completion, error

from jupyter_env.models import server
from jupyter_env.task import TaskPool
from pipeline.export import ExportSettings
from pipeline.models import ModelSettings
from pipeline.parts import read_rows
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.stages.curate import CurateSettings
from pipeline.stages.traces import TraceSettings

PENGUINS = [source for source in sources() if source.name == "penguins"]


def run(tmp_path: Path, *, simulate: bool, allow: bool, behave: Behave | None = None) -> tuple[RunFolder, list[dict]]:  # type: ignore[type-arg]
    if not (tmp_path / "in").exists():
        write_inputs(tmp_path / "in", tmp_path / "data", PENGUINS)
    (tmp_path / "empty").mkdir(exist_ok=True)
    with ScriptedServer(behave or Inventing()) as scripted:
        model = ModelSettings(name="tiny", endpoints=(scripted.url,), max_retries=1)
        recipe = Recipe(
            tasks=1,
            workers=1,
            max_failed=1.0,
            missing_data="keep",
            asker=model,
            teacher=model,
            traces=TraceSettings(attempts=1, missing_data="simulate" if simulate else "skip"),
            curate=CurateSettings(allow_simulated=allow),
            export=ExportSettings(held_out=0.0),
        )
        folder = run_here(
            tmp_path / "run", tmp_path / "in", until="export", recipe=recipe, data=str(tmp_path / "empty")
        )
        return folder, scripted.requests


def test_without_a_simulator_they_are_left_out(tmp_path: Path) -> None:
    folder, _ = run(tmp_path, simulate=False, allow=False)
    assert folder.tally("traces").reasons == {"data_not_here": 3}
    pool = TaskPool.load(folder.root / "export" / "pool" / "without_data.jsonl")
    assert {task.metadata["checks"]["reference_code"] for task in pool} == {"not_run"}
    assert [file.path for file in pool[0].files] == ["palmerpenguins/penguins.csv"]
    assert len(TaskPool.load(folder.root / "export" / "pool" / "train.jsonl")) == 0


@pytest.mark.parametrize("allow", [False, True])
def test_invented_traces_are_marked_and_kept_only_if_asked_for(tmp_path: Path, allow: bool) -> None:
    folder, requests = run(tmp_path, simulate=True, allow=allow)
    assert len(ids(folder, "traces")) == 3
    if not allow:
        assert folder.tally("curate").reasons == {"simulated": 3}
        assert not (folder.root / "export" / "sft").exists()
        return
    assert folder.tally("curate").reasons == {}
    rows = list(
        read_rows((folder.root / "export" / "sft" / "thinking").glob("*.parquet"), ["executor_type", "correct"])
    )
    assert [row["executor_type"] for row in rows] == ["llm"] * 3
    inventing = [body for body in requests if is_inventing(body)]
    assert inventing
    assert all("Penguins of the Palmer archipelago" in body["messages"][1]["content"] for body in inventing), "told"
    teacher = [body for body in requests if body.get("tools")]
    assert not any("Palmer archipelago" in json.dumps(body["messages"]) for body in teacher), "never the solver"


def test_where_no_path_is_known_nothing_is_worked_on(tmp_path: Path) -> None:
    """Else the teacher would work in a real kernel without a table, and its traces would be called real."""
    write_inputs(tmp_path / "in", tmp_path / "data", PENGUINS)
    book = tmp_path / "in" / "penguins.ipynb"
    named = json.dumps('pd.read_csv("../input/palmerpenguins/penguins.csv")')[1:-1]
    assert named in book.read_text()
    book.write_text(book.read_text().replace(named, "pd.read_csv(table)"))
    folder, requests = run(tmp_path, simulate=True, allow=True)
    assert folder.tally("traces").reasons == {"path_not_known": 3}
    assert not any(body.get("tools") for body in requests)


def simulator_says(reply: Answer) -> Behave:
    script = Inventing()
    return lambda body, number: reply if is_inventing(body) else script(body, number)


def test_a_simulator_without_a_usable_reply_is_a_reason(tmp_path: Path) -> None:
    folder, _ = run(tmp_path, simulate=True, allow=True, behave=simulator_says(completion("I am no interpreter.")))
    assert folder.tally("traces").reasons == {"simulator_failed": 3}


def test_a_simulator_that_is_down_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_delay_s", lambda attempt, asked_s: 0.01)
    folder, _ = run(tmp_path, simulate=True, allow=True, behave=simulator_says(error(503, "down")))
    found = outcomes(folder, "traces").values()
    assert {(outcome.state, outcome.reason.partition(":")[0]) for outcome in found} == {("failed", "ModelUnavailable")}
    folder, _ = run(tmp_path, simulate=True, allow=True)
    assert len(ids(folder, "traces")) == 3
