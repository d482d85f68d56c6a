"""From notebooks to a pool and training data, with a scripted model behind a real server and real kernels."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import nbformat
import pytest
from authored import labelled, sources, write_inputs
from runs import ids, outcomes, run_here
from scripted import Script, kind_of
from servers import ScriptedServer

from jupyter_env.check import check_task
from jupyter_env.task import Task, TaskPool
from pipeline.export import ExportSettings
from pipeline.funnel import funnel, levels
from pipeline.models import ModelSettings
from pipeline.parts import read_rows
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.stages.ask import AskSettings


def recipe_for(url: str, **changes: object) -> Recipe:
    """One task, one server for all roles."""
    model = ModelSettings(name="tiny", endpoints=(url,), max_retries=3)
    settings = Recipe(
        tasks=1,
        workers=1,
        asker=model,
        teacher=model,
        ask=AskSettings(in_flight=3),
        export=ExportSettings(held_out=0.2),
    )
    return msgspec.structs.replace(settings, **changes)


class Finished:
    """A run with what its server was asked."""

    def __init__(self, work: Path) -> None:
        self.work = work
        write_inputs(work / "in", work / "data")
        with ScriptedServer(Script()) as server:
            self.recipe = recipe_for(server.url)
            self.folder = self.run()
            self.requests = list(server.requests)
            self.run()
            self.asked_again = len(server.requests) - len(self.requests)

    def run(self) -> RunFolder:
        work = self.work
        return run_here(work / "run", work / "in", until="export", recipe=self.recipe, data=str(work / "data"))

    @property
    def export(self) -> Path:
        return self.folder.root / "export"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    yield Finished(tmp_path_factory.mktemp("questions"))


def accepted(folder: RunFolder) -> Counter[str]:
    """How many of each label were let through."""
    return Counter(label_of(name) for name in ids(folder, "unique"))


def label_of(name: str) -> str:
    notebook, _, number = name.partition(".ipynb#q")
    return [question for question in labelled() if question.notebook == notebook][int(number)].label


def test_the_labelled_set(finished: Finished) -> None:
    """30 right, 15 planted wrong, 15 trivial or ambiguous: with a careful second reader all are told apart."""
    assert Counter(question.label for question in labelled()) == {
        "right": 30,
        "wrong": 15,
        "trivial": 9,
        "ambiguous": 6,
    }
    assert accepted(finished.folder) == {"right": 30}
    reasons = Counter((label_of(name), found.reason) for name, found in outcomes(finished.folder, "check").items())
    assert reasons["wrong", "second_reader_disagrees"] == 12
    assert reasons["trivial", "trivial"] == 7


def test_a_second_reader_who_agrees_with_everything(tmp_path: Path) -> None:
    """The floor: what the checks that need no reader hold back. Two wrong answers come with code that is as wrong."""
    write_inputs(tmp_path / "in", tmp_path / "data")
    with ScriptedServer(Script(gullible=True)) as server:
        recipe = recipe_for(server.url)
        folder = run_here(tmp_path / "run", tmp_path / "in", until="unique", recipe=recipe, data=str(tmp_path / "data"))
    assert accepted(folder) == {"right": 30, "ambiguous": 6, "wrong": 2}
    disagreed = [name for name, found in outcomes(folder, "check").items() if found.reason == "code_disagrees"]
    assert len(disagreed) == 12
    assert all(label_of(name) == "wrong" for name in disagreed)


def test_every_account_adds_up(finished: Finished) -> None:
    rows = {row["stage"]: row for row in funnel(finished.folder)}
    assert all(row["adds_up"] in (True, None) for row in rows.values())
    assert [rows[name]["items"] for name in ("ask", "check", "unique", "traces", "curate")] == [10, 60, 30, 30, 60]
    by_level = levels(finished.folder)
    assert sum(row["written"] for row in by_level) == 60
    assert sum(row["left"] for row in by_level) == sum(row["solved"] for row in by_level) == 30
    for row in by_level:
        lost = sum(row[key] for key in row if key not in ("level", "written", "left", "with a trace", "solved"))
        assert row["written"] - lost == row["left"]


def test_a_second_run_asks_nothing(finished: Finished) -> None:
    assert finished.asked_again == 0


def test_other_thresholds_ask_only_what_is_new(finished: Finished, tmp_path: Path) -> None:
    """Replies outlive the settings: a stricter threshold costs no call at all."""
    shutil.copytree(finished.folder.root, tmp_path / "run")
    with ScriptedServer(Script()) as server:
        stricter = recipe_for(server.url, ask=AskSettings(in_flight=3, min_steps=4))
        where = {"data": str(finished.work / "data"), "repartition": True}
        folder = run_here(tmp_path / "run", finished.work / "in", until="unique", recipe=stricter, **where)
        assert len(server.requests) == 0
    assert 0 < len(ids(folder, "unique")) < 30


def test_the_calls_of_a_notebook_share_a_prefix(finished: Finished) -> None:
    """To the letter, up to the end of the notebook; the task comes after it."""
    prefixes: dict[str, set[str]] = {}
    for body in finished.requests:
        if kind_of(body) in ("score", "ask", "read"):
            text = body["messages"][1]["content"]
            mark = text.split()[1]
            prefixes.setdefault(mark, set()).add(body["messages"][0]["content"] + text.partition("\nTask: ")[0])
    assert len(prefixes) == 10
    assert all(len(found) == 1 for found in prefixes.values())


async def test_the_pool_is_sound(finished: Finished) -> None:
    train = TaskPool.load(finished.export / "pool" / "train.jsonl")
    assert 20 < len(train) <= 30
    for task in [*train][::8]:
        report = await check_task(task, train)
        assert report.sound, report.problems
    task = train[0]
    assert set(task.metadata["checks"]) == {"in_output", "steps", "second_reader", "blind", "reference_code"}
    assert task.metadata["teacher"] == {"attempts": 2, "right": 2}
    rounded = next(task for task in train if "unemployment rate over the quarters" in task.question)
    assert f"{rounded.answer.value:.4f}" == "7.2775", "kept unrounded"  # type: ignore[union-attr]


def test_the_training_data_loads(finished: Finished, tmp_path: Path) -> None:
    from datasets import load_dataset

    variants = {}
    for variant in ("thinking", "non_thinking"):
        path = finished.export / "sft" / variant / "train.parquet"
        variants[variant] = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path))
    published = "id question answer edu_score files_used packages_used kaggle_dataset_name executor_type"
    assert set(variants["thinking"].column_names) > {
        *published.split(),
        "original_notebook",
        "messages",
        "tools",
        "text",
    }
    assert variants["thinking"]["id"] == variants["non_thinking"]["id"]
    row, plain = variants["thinking"][0], variants["non_thinking"][0]
    first, other = row["messages"][2], plain["messages"][2]
    assert (
        first["reasoning_content"] == other["content"] == "Ok, here is the plan: I look at the table and then compute."
    )
    assert set(first["tool_calls"][0]["function"]["arguments"]) == {"code"}, (
        "the comment is no argument of the student's"
    )
    assert row["messages"][-1]["tool_calls"][0]["function"]["name"] == "final_answer"
    assert "<think>\nOk, here is the plan" in row["text"]
    assert "Ok, here is the plan" in plain["text"]
    assert row["turn_status"] == ["ok", "ok", "answered"]
    assert row["correct"] is True
    assert row["executor_type"] == "kernel"
    assert row["files_used"][0].startswith("authored+")
    assert row["packages_used"] == ["pandas"]


def test_splits_share_nothing(finished: Finished) -> None:
    pools = [TaskPool.load(finished.export / "pool" / f"{name}.jsonl") for name in ("train", "held_out")]
    for what in ("dataset", "notebook", "group", "table"):
        train, held = ({key for task in pool for key in _shared(task, what)} for pool in pools)
        assert train and held and not train & held, what


def _shared(task: Task, what: str) -> list[str]:
    if what == "table":
        return [file.sha256 for file in task.files]
    return [task.dataset if what == "dataset" else task.metadata[what]]


def test_traces_are_notebooks(finished: Finished) -> None:
    paths = sorted((finished.export / "notebooks").iterdir())
    assert len(paths) == 60
    book = nbformat.read(paths[0], as_version=4)
    nbformat.validate(book)
    assert any("Verdict" in cell.source for cell in book.cells)


def test_the_card_has_the_whole_funnel(finished: Finished) -> None:
    card = (finished.export / "README.md").read_text()
    assert card.startswith("---\nconfigs:\n- config_name: thinking")
    for words in (
        "30 questions",
        "60 traces",
        "| check | 60 | 30 | 30 | 0 |",
        "second_reader_disagrees",
        "prompt `ask 1 ",
    ):
        assert words in card, words


def test_records_hold_no_times(finished: Finished) -> None:
    """Equal work gives equal bytes, also where a machine was slower."""
    row = next(read_rows(finished.folder.all_parts("curate"), ["record"]))
    record = json.loads(row["record"])
    assert record["started_at"] == "" and record["duration_s"] == 0
    assert len(sources()) == 10


def test_the_command_line(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from pipeline.cli import app

    def call(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    assert "second_reader_disagrees" in call("questions", "-o", finished.folder.root)
    assert "prompt tokens (60% from the cache)" in call("status", "-o", finished.folder.root)
    rows = json.loads(call("questions", "-o", finished.folder.root, "--json"))
    assert [row["level"] for row in rows] == ["easy", "medium", "hard", "expert"]
    given = ("run", "--input", finished.work / "in", "--data", finished.work / "data", "-o", finished.folder.root)
    models = ("--model", "m", "--base-url", "http://a/v1,http://b/v1", "--teacher", "t", "--dry-run", "--json")
    plan = json.loads(call(*given, *models))
    assert plan["jobs"][-6:] == ["check", "unique-match", "unique", "traces", "curate", "export"]
    assert plan["models"]["from"] == "this run" and plan["models"]["notebooks_scored"] == 10
    assert plan["models"]["teacher"]["calls"] > 0
    failed = CliRunner().invoke(app, [*map(str, given), "--until", "ask", "--dry-run"])
    assert "those after render need a model" in str(failed.exception)
