"""Runs of scripted agents, their files, and the notebooks run again."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest
from fakes import FakeInterpreter
from nbclient import NotebookClient

from jupyter_env import Budget, InfrastructureError, Task, TaskDataError, TaskError, TaskPool
from jupyter_env.answer import Integer
from jupyter_env.chat import ModelSetupError, ModelUnavailable, Reply
from jupyter_env.episode import EpisodeRecord
from jupyter_env.evaluate import pass_rates, wilson_interval
from jupyter_env.report.notebook import to_notebook, write_notebook
from jupyter_env.rollout import plan, read_records, rollout
from jupyter_env.scripted import AGENTS


@pytest.fixture(scope="module")
def pool() -> TaskPool:
    return TaskPool.procedural(12, seed=5)


def run(pool: TaskPool, agents: Sequence[str], out: Path, n: int = 1, **options: object) -> list[EpisodeRecord]:
    return asyncio.run(rollout(plan(pool, agents, n), pool, AGENTS, out, **options))


def rerun(pool: TaskPool, records: list[EpisodeRecord], folder: Path) -> list[str]:
    """Run each record's notebook again with nbclient; the ids of those whose outputs differ."""
    pool.copy_data(folder / "data")
    different = []
    for index, record in enumerate(records):
        path = folder / f"{index}.ipynb"
        write_notebook(record, path)
        notebook = nbformat.read(str(path), as_version=4)
        before = [cell.get("outputs") for cell in notebook.cells]
        # As the environment runs cells, but for this the stock kernel: hash order and thread count set alike.
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
        if [cell.get("outputs") for cell in notebook.cells] != before:
            different.append(record.id)
    return different


def test_oracle_is_right_and_weak_agents_are_not(pool: TaskPool, tmp_path: Path) -> None:
    records = run(pool, ["oracle", "guess", "peek"], tmp_path / "episodes.jsonl")
    rates = pass_rates(records)
    assert rates["oracle"]["all"].rate == 1.0
    assert rates["guess"]["all"].rate <= 0.25
    assert rates["peek"]["all"].rate <= 0.25
    written = {record.id: record for record in read_records(tmp_path / "episodes.jsonl")}
    assert written == {record.id: record for record in records}
    assert rerun(pool, records, tmp_path / "notebooks") == []


def test_scripted_agents_are_repeatable(pool: TaskPool, tmp_path: Path) -> None:
    few = pool[:3]
    first = run(few, ["guess", "peek"], tmp_path / "a.jsonl", n=2)
    second = run(few, ["guess", "peek"], tmp_path / "b.jsonl", n=2)
    assert [record.answer for record in first] == [record.answer for record in second]
    assert len({record.id for record in first}) == len(first) == 12


def test_concurrency_is_bounded(pool: TaskPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jupyter_env.rollout as module

    running = most = 0
    original = module.run_episode

    async def counted(*args: object, **options: object) -> EpisodeRecord:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await original(*args, **options)
        finally:
            running -= 1

    monkeypatch.setattr(module, "run_episode", counted)
    run(pool[:6], ["guess"], tmp_path / "episodes.jsonl", concurrency=2)
    assert most == 2


def test_missing_table_is_found_before_the_first_episode(pool: TaskPool, tmp_path: Path) -> None:
    pool.save(tmp_path / "tasks.jsonl")
    next((tmp_path / "data").rglob("*.csv")).write_text("a,b\n1,")
    changed = TaskPool.load(tmp_path / "tasks.jsonl")
    with pytest.raises(TaskDataError, match="sha256"):
        run(changed, ["oracle"], tmp_path / "episodes.jsonl")
    assert not (tmp_path / "episodes.jsonl").exists()


def test_a_kernel_that_does_not_start_is_recorded_not_raised(tmp_path: Path) -> None:
    from jupyter_env import KernelSettings

    broken = KernelSettings(python="/bin/false", start_timeout_s=5)
    pool = TaskPool([Task(id="a", question="What is 6 times 7?", answer=Integer(value=42))])
    [record] = run(pool, ["oracle"], tmp_path / "episodes.jsonl", kernel=broken)
    assert record.stop_reason == "infrastructure_error"
    assert record.reward is None and record.verdict is None and "/bin/false" in (record.error or "")
    assert pass_rates([record]) == {}


def test_a_server_that_is_gone_ends_the_run_and_not_each_job_in_vain(tmp_path: Path) -> None:
    tries = 0

    def gone(task: Task, seed: int):
        async def respond(messages: object, tools: object) -> Reply:
            nonlocal tries
            tries += 1
            if seed < 2:
                return Reply(message={"role": "assistant", "content": "final_answer: 42"})
            raise ModelUnavailable("nobody answers")

        return respond

    import jupyter_env.rollout as module

    pool = TaskPool([Task(id="a", question="What is 6 times 7?", answer=Integer(value=42))])
    out = tmp_path / "episodes.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_kernel", lambda settings: FakeInterpreter())
        with pytest.raises(InfrastructureError, match=r"last 50 attempts all failed.*nobody answers"):
            asyncio.run(rollout(plan(pool, ["gone"], 500), pool, {"gone": gone}, out, concurrency=4))
    assert tries < 60 and len(list(read_records(out))) == 2


def test_a_run_that_ends_early_leaves_no_kernel(tmp_path: Path, no_leaks: Path) -> None:
    def refused(task: Task, seed: int):
        async def respond(messages: object, tools: object) -> Reply:
            if seed == 3:
                await asyncio.sleep(3)  # the others are in their cells then
                raise ModelSetupError("a wrong key")
            return Reply(message={"role": "assistant", "content": "```python\nimport time; time.sleep(60)\n```"})

        return respond

    pool = TaskPool([Task(id="a", question="What is 6 times 7?", answer=Integer(value=42))])
    with pytest.raises(ModelSetupError):
        out = tmp_path / "episodes.jsonl"
        asyncio.run(rollout(plan(pool, ["r"], 4), pool, {"r": refused}, out, concurrency=4))


def test_one_episode_is_planned_once(pool: TaskPool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two jobs make the episode"):
        run(pool[:1], ["guess", "guess"], tmp_path / "episodes.jsonl")


def test_a_defect_in_an_agent_is_kept_with_its_traceback(tmp_path: Path) -> None:
    def broken(task: Task, seed: int):
        async def respond(messages: object, tools: object) -> Reply:
            raise KeyError("oops") if seed == 1 else ModelUnavailable("x")

        return respond

    pool = TaskPool([Task(id="a", question="What is 6 times 7?", answer=Integer(value=42))])
    out = tmp_path / "episodes.jsonl"
    records = asyncio.run(rollout(plan(pool, ["b"], 2), pool, {"b": broken}, out, retries=0))
    assert "KeyError: 'oops'" in (records[1].error or "") and out.read_bytes() == b""


def test_bad_lines_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text('{"id": "a", "task_id": 3, "question": ""}\n')
    with pytest.raises(TaskError, match=r"line 1.*task_id"):
        list(read_records(path))
    path.write_text('{"id": "a", "task_id": "a", "question": "", "schema_version": 99}\n')
    with pytest.raises(TaskError, match="newer"):
        list(read_records(path))
    with pytest.raises(TaskError, match="does not exist"):
        list(read_records(tmp_path / "none.jsonl"))


def test_notebook_of_errors_timeouts_and_malformed_turns_runs_again(tmp_path: Path) -> None:
    pool = TaskPool([Task(id="a", question="What is 6 times 7?", answer=Integer(value=42))])
    turns = iter(["print('hello')", "1/0", "while True: pass", None, "print(6*7)"])

    def clumsy(task: Task, seed: int):
        async def respond(messages: object, tools: object) -> Reply:
            code = next(turns, "")
            if code is None:
                return Reply(message={"role": "assistant", "content": "Let me think."})
            text = f"```python\n{code}\n```" if code else "final_answer: 42"
            return Reply(message={"role": "assistant", "content": text})

        return respond

    jobs = plan(pool, ["clumsy"], 1)
    out = tmp_path / "episodes.jsonl"
    [record] = asyncio.run(rollout(jobs, pool, {"clumsy": clumsy}, out, budget=Budget(cell_timeout_s=1)))
    assert [cell.status for cell in record.cells] == ["ok", "code_error", "timeout", "ok"]
    assert record.malformed_turns == 1 and record.reward == 1.0
    notebook = to_notebook(record)
    tags = [cell.metadata.get("tags") for cell in notebook.cells if cell.cell_type == "code"]
    assert tags == [None, ["raises-exception"], ["skip-execution"], None]
    NotebookClient(notebook, timeout=60).execute()
    assert "ZeroDivisionError" in json.dumps(notebook)
    assert to_notebook(record) == to_notebook(record)


def test_wilson_interval_against_known_values() -> None:
    # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29
    for correct, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(correct, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.soak
def test_every_demo_notebook_gives_equal_outputs(tmp_path: Path) -> None:
    pool = TaskPool.procedural(40, seed=0)
    records = run(pool, list(AGENTS), tmp_path / "episodes.jsonl")
    assert len(records) == 120
    assert rerun(pool, records, tmp_path / "notebooks") == []
