"""Notebooks whose tables are not here: a model stands in for the interpreter, which is marked and asked for."""

import json
from pathlib import Path

import pytest
from authored import sources, write_inputs
from runs import ids, run_here
from scripted import Inventing
from servers import ScriptedServer

from jupyter_env.task import TaskPool
from pipeline.export import ExportSettings
from pipeline.models import ModelSettings
from pipeline.parts import read_rows
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.stages.curate import CurateSettings
from pipeline.stages.traces import TraceSettings

PENGUINS = [source for source in sources() if source.name == "penguins"]


def run(tmp_path: Path, *, simulate: bool, allow: bool) -> tuple[RunFolder, list[dict]]:  # type: ignore[type-arg]
    write_inputs(tmp_path / "in", tmp_path / "data", PENGUINS)
    (tmp_path / "empty").mkdir()
    with ScriptedServer(Inventing()) as server:
        model = ModelSettings(name="tiny", endpoints=(server.url,))
        recipe = Recipe(
            tasks=1,
            workers=1,
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
        return folder, server.requests


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
    inventing = [body for body in requests if "stateful Python" in body["messages"][0]["content"]]
    assert inventing
    assert all("Penguins of the Palmer archipelago" in body["messages"][1]["content"] for body in inventing), "told"
    teacher = [body for body in requests if body.get("tools")]
    assert not any("Palmer archipelago" in json.dumps(body["messages"]) for body in teacher), "never the solver"
