"""Optional data: the real notebooks with their tables and the twelve authored ones, from `.ipynb` to training data.

What a model would say is scripted: questions to three of the real notebooks, written and labelled by hand, low scores
for the four that no question was written to.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from authored import execute, labelled, lay_out_tables, manifest_line, sources, write_inputs
from runs import ids, outcomes, run_here, shared
from scripted import Script
from servers import ScriptedServer

from jupyter_env.task import TaskPool
from pipeline.export import ExportSettings
from pipeline.funnel import funnel
from pipeline.models import ModelSettings
from pipeline.recipe import Recipe

TITLES = {
    "# Kaggle Machine Learning Competition: Predicting Titanic Survivors": "titanic-0096",
    "#### Author: Mr. M.Belhaddad": "facebook-0386",
}


class RealScript(Script):
    """Knows the real notebooks too; two begin with the same line, and are told apart by their tables."""

    def notebook(self, text: str) -> str | None:
        name = super().notebook(text)
        return "movies-0389" if "tmdb-movies.csv" in text else name


def gather(work: Path) -> None:
    """All notebooks in one folder with one manifest, all tables beside it."""
    write_inputs(work / "in", work / "data")
    dabench, tables = sources("authored_dabench.txt"), shared("dabench") / "tables"
    lay_out_tables(work / "data", dabench, tables)
    lines = (work / "in" / "manifest.jsonl").read_text()
    for source in dabench:
        (work / "in" / f"{source.name}.ipynb").write_bytes(execute(source, tables / source.table))
        lines += manifest_line(source)
    for path in shared("notebooks").glob("*.ipynb"):
        shutil.copyfile(path, work / "in" / path.name)
    (work / "in" / "manifest.jsonl").write_text(lines + (shared("notebooks") / "manifest.jsonl").read_text())
    for folder in shared("notebook_tables").iterdir():
        if folder.is_dir():
            shutil.copytree(folder, work / "data" / folder.name)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_from_notebooks_to_a_pool_and_training_data(tmp_path: Path) -> None:
    gather(tmp_path)
    questions = [*labelled(), *labelled("labelled_real.jsonl")]
    titles = TITLES | {source.cells[0][1].split("\n")[0]: source.name for source in sources("authored_dabench.txt")}
    with ScriptedServer(RealScript(questions, titles=titles)) as server:
        model = ModelSettings(name="tiny", endpoints=(server.url,))
        recipe = Recipe(tasks=2, workers=1, asker=model, teacher=model, export=ExportSettings(held_out=0.1))
        run = run_here(tmp_path / "run", tmp_path / "in", until="export", recipe=recipe, data=str(tmp_path / "data"))
    rows = {row["stage"]: row for row in funnel(run)}
    print(json.dumps(list(rows.values()), indent=1))
    assert rows["read"]["items"] == 206 + 12
    assert rows["render"]["done"] == 7 + 12
    assert (rows["ask"]["done"], rows["ask"]["reasons"]) == (15, {"low_score": 4})
    found = outcomes(run, "check")
    wrong = {name: item.reason for name, item in found.items() if "__" in name and item.state != "done"}
    assert Counter(wrong.values()) == {
        "second_reader_disagrees": 2,
        "about_model_scores": 1,
        "trivial": 1,
        "ambiguous": 1,
    }
    assert len(ids(run, "unique")) == 30 + 9, "all 39 that are right"
    assert rows["curate"]["done"] == 2 * 39
    pool = TaskPool.load(run.root / "export" / "pool" / "train.jsonl")
    assert {task.licence for task in pool} >= {"CC0-1.0", "Apache-2.0"}
    program = str(Path(sys.executable).with_name("jupyter-env"))
    checked = subprocess.run(
        [program, "tasks", "check", run.root / "export" / "pool" / "train.jsonl"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
