"""DABstep and DABench: their files, their scorers, and hand-written agents that answer them through the whole stack."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dabench_solutions import SOLUTIONS as DABENCH
from dabstep_solutions import SOLUTIONS as DABSTEP
from servers import Answer, ScriptedServer, answered, ran, rolled_out

from jupyter_env import TaskDataError, TaskError, TaskPool
from jupyter_env.answer import Hidden, Labelled, ListOf, NotApplicable, Number, reference_text, verify
from jupyter_env.episode import EpisodeRecord
from jupyter_env.evaluate import evaluate
from jupyter_env.models.server import ServerModel
from jupyter_env.tasksets import dabench, dabstep, load_benchmark

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "dabench").is_dir(), reason="the optional test data is not at ../shared/data"
)
WITHOUT_PAYMENTS = [name for name in dabstep.CONTEXT if name != "payments.csv"]


def through_the_stack(pool: TaskPool, cells: Callable[[str], list[str]], folder: Path) -> list[EpisodeRecord]:
    """The cells of a hand-written agent come from a model server; its answer is what the last one printed."""

    def behave(body: dict[str, Any], number: int) -> Answer:
        question = body["messages"][1]["content"]
        task = next(task for task in pool if question.startswith(task.question.strip()))
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        steps = cells(task.id)
        if turn < len(steps):
            return ran(steps[turn])
        return answered(", ".join(body["messages"][-1]["content"].strip().splitlines()))

    async def run(url: str) -> list[EpisodeRecord]:
        return await rolled_out(ServerModel("expert", url), pool, 1, folder / "episodes.jsonl")

    with ScriptedServer(behave) as server:
        return asyncio.run(run(server.url))


@needs_data
def test_reference_agents_answer_all_54_questions_of_dabench(tmp_path: Path) -> None:
    pool = dabench.load(DATA / "dabench")
    assert len(pool) == len(DABENCH) == 54

    def cells(task_id: str) -> list[str]:
        file = pool.get(task_id).files[0].path
        imports = f"import numpy as np\nimport pandas as pd\nfrom scipy import stats\nt = pd.read_csv('data/{file}')"
        answer = "print(', '.join(f'@{name}[{value}]' for name, value in a.items()))"
        return [imports, f"{DABENCH[int(task_id.removeprefix('dabench-'))]}\n{answer}"]

    records = through_the_stack(pool, cells, tmp_path)
    wrong = [
        (record.id, record.stop_reason, record.answer, record.verdict) for record in records if record.reward != 1.0
    ]
    assert wrong == []
    [score] = evaluate(records, pool)
    assert score.dabench == dabench.Metrics(psaq=1.0, abq=1.0, uasq=1.0)
    assert score.compat == score.pass_at[1] == 1.0 and score.tasks == 54


@needs_data
def test_reference_agents_answer_four_dev_tasks_of_dabstep(tmp_path: Path) -> None:
    dev = dabstep.load(DATA / "dabstep", "dev", WITHOUT_PAYMENTS)
    assert len(dev) == 10
    pool = dev.filter(lambda task: task.metadata["task_id"] in DABSTEP)
    records = through_the_stack(pool, lambda task_id: DABSTEP[task_id.removeprefix("dabstep-")], tmp_path)
    assert [record.reward for record in records] == [1.0] * 4, [record.verdict for record in records]
    [score] = evaluate(records, pool)
    assert score.compat == 1.0 and score.levels["hard"].correct == 3


@needs_data
def test_the_strict_answers_of_dabench_are_right_for_its_own_scorer() -> None:
    for task in dabench.load(DATA / "dabench"):
        text = reference_text(task.answer)
        assert verify(text, task.answer).correct and all(dabench.score(text, task.metadata["labels"]).values())


@needs_data
def test_dev_answers_are_typed_and_read_back() -> None:
    dev = dabstep.load(DATA / "dabstep", "dev", WITHOUT_PAYMENTS)
    for task in dev:
        assert verify(reference_text(task.answer), task.answer).correct
        assert verify(task.metadata["reference"], task.answer).correct
    answers = {task.metadata["task_id"]: task.answer for task in dev}
    assert answers["70"] == NotApplicable() and answers["1273"] == Number(value=0.120132, decimals=6)
    assert answers["2697"] == Labelled(label="E", number=Number(value=13.57, decimals=2))
    assert isinstance(answers["1753"], ListOf) and not answers["1753"].ordered
    assert verify("-0.94", answers["1871"]).correct and not verify("0.94", answers["1871"]).correct


@needs_data
def test_payments_are_checked(tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(DATA / "dabstep" / "context", root / "context")
    shutil.copytree(DATA / "dabstep" / "tasks", root / "tasks")
    with pytest.raises(TaskError, match=r"payments\.csv is missing"):
        dabstep.load(tmp_path, "dev")
    (root / "context" / "payments.csv").write_text("psp_reference\n1\n")
    with pytest.raises(TaskDataError, match="changed or cut short"):
        load_benchmark("dabstep-dev", tmp_path)
    with pytest.raises(TaskError, match=r"all\.jsonl is missing"):
        load_benchmark("dabstep", tmp_path)


@needs_data
def test_tasks_without_answers_end_unjudged_and_can_be_submitted(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (DATA / "dabstep" / "tasks" / "dev.jsonl").read_text().splitlines()]
    (tmp_path / "tasks").mkdir()
    hidden = "".join(json.dumps({**row, "answer": ""}) + "\n" for row in rows if row["task_id"] in DABSTEP)
    (tmp_path / "tasks" / "all.jsonl").write_text(hidden)
    shutil.copytree(DATA / "dabstep" / "context", tmp_path / "context")
    pool = dabstep.load(tmp_path, context=WITHOUT_PAYMENTS)
    assert all(task.answer == Hidden() for task in pool)
    records = through_the_stack(pool, lambda task_id: DABSTEP[task_id.removeprefix("dabstep-")], tmp_path / "run")
    assert all(record.reward is None and record.verdict is None and record.answer for record in records)
    [score] = evaluate(records, pool)
    assert score.unjudged == 4 and score.all.episodes == 0 and score.pass_at == {} and score.cost.turns > 2
    line = json.loads(dabstep.submission_line(records[1].task_id, records[1].answer, "trace"))
    assert line == {"task_id": "1273", "agent_answer": "0.120132", "reasoning_trace": "trace"}


@pytest.mark.parametrize(
    ("answer", "labels", "right"),
    [
        ("@a[1.50]", {"a": "1.5"}, [True]),
        ("text @a[1] and @b[x]", {"a": "1", "b": "X"}, [True, False]),
        ("@a[1.0000001] @a[2]", {"a": "2"}, [True]),  # the last of two counts, as in the script
        ("@a[1.000002]", {"a": "1"}, [False]),
        (None, {"a": "1"}, [False]),
        ("@a[nan]", {"a": "nan"}, [True]),
    ],
)
def test_dabench_scorer(answer: str | None, labels: dict[str, str], right: list[bool]) -> None:
    assert list(dabench.score(answer, labels).values()) == right


def test_dabench_metrics() -> None:
    found = dabench.metrics([{"a": True}, {"a": True, "b": False, "c": False}, {"a": False, "b": True}])
    assert found.abq == 1 / 3 and found.uasq == 3 / 6 and found.psaq == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)


def test_names_that_nobody_can_check_may_come_along(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text(
        json.dumps(
            {
                "id": 1,
                "question": "q",
                "constraints": "c",
                "format": "@p[x] @r[y]",
                "concepts": [],
                "level": "easy",
                "file_name": "t.csv",
            }
        )
    )
    (tmp_path / "labels.jsonl").write_text('{"id": 1, "common_answers": [["r", "0.50"]]}')
    with pytest.raises(TaskError, match="tables"):
        dabench.load(tmp_path)
    (tmp_path / "tables").mkdir()
    with pytest.raises(TaskError, match=r"t\.csv, which is missing"):
        dabench.load(tmp_path)
    (tmp_path / "tables" / "t.csv").write_text("a\n1\n")
    [task] = dabench.load(tmp_path)
    assert verify("@r[0.5]", task.answer).correct and verify("@p[0.01]\n@r[0.502]", task.answer).correct
    assert not verify("@r[0.5] @s[1]", task.answer).correct and not verify("@p[0.5]", task.answer).correct
