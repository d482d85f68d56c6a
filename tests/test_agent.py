"""The loop: what ends an episode, what a model that misbehaves is told, and how its context is kept."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeFactory, FakeInterpreter, result
from servers import Answer, ScriptedServer, answered, call, completion, error, ran

from jupyter_env import Task, TaskPool
from jupyter_env.agent import PROMPTS, AgentSettings, agent_settings, work
from jupyter_env.answer import Integer
from jupyter_env.chat import ContextOverflow, ModelUnavailable, Reply, Usage
from jupyter_env.episode import Budget, Episode, EpisodeRecord
from jupyter_env.models.server import ServerModel
from jupyter_env.rollout import plan, read_records, rollout

TASK = Task(id="a", question="What is 6 times 7?", answer=Integer(value=42))


DEFAULTS = AgentSettings()


async def led(model: Any, settings: AgentSettings = DEFAULTS, output: str = "ok", **options: Any) -> Episode:
    episode = Episode(TASK, {}, FakeFactory(FakeInterpreter(result(output))), **options)
    await episode.start()
    await work(episode, model, settings)
    await episode.close()
    return episode


def saying(*messages: Any) -> Callable[..., Any]:
    """A model that says these in turn, the last one over and over; an exception is raised."""
    left = list(messages)

    async def respond(sent: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> Reply:
        said = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(said, Exception):
            raise said
        if isinstance(said, Reply):
            return said
        chars = sum(len(str(message)) for message in sent)
        return Reply(message={"role": "assistant", "content": said}, usage=Usage(requests=1, prompt_tokens=chars // 3))

    return respond


CELL = "```python\nprint(6 * 7)\n```"


async def test_it_works_until_the_answer() -> None:
    episode = await led(saying(CELL, CELL, "final_answer: 42"))
    assert episode.record.reward == 1.0 and episode.record.turns == 3
    assert episode.record.usage.requests == 3 and episode.record.model_s > 0


async def test_turns_in_a_row_without_a_call_end_it() -> None:
    episode = await led(saying("Let me think.", "Hm.", CELL, "Well."))
    assert episode.record.stop_reason == "no_call" and episode.record.turns == 6
    assert episode.record.malformed_turns == 5 and episode.record.reward == 0.0
    assert (await led(saying("Hm."), AgentSettings(max_turns_without_call=1))).record.turns == 1


async def test_budgets_end_it() -> None:
    assert (await led(saying(CELL), budget=Budget(max_turns=4))).record.stop_reason == "turn_limit"


async def test_a_message_that_was_cut_is_told_so() -> None:
    cut = Reply(message={"role": "assistant", "content": "<think>long"}, finish_reason="length")
    episode = await led(saying(cut, "final_answer: 42"))
    assert "cut at the token limit" in episode.messages[3]["content"] and episode.record.reward == 1.0


async def test_old_outputs_are_shortened_aloud_before_the_context_overflows() -> None:
    settings = AgentSettings(context_tokens=4000, reply_tokens=500)
    episode = await led(saying(*[CELL] * 6, "final_answer: 42"), settings, output="x" * 3000)
    record = episode.record
    assert record.reward == 1.0 and record.shortened_outputs > 0
    outputs = [message["content"] for message in record.messages[2:] if message["role"] != "assistant"]
    shortened = ["characters of this output were removed" in output for output in outputs]
    assert shortened == sorted(shortened, reverse=True) and not shortened[-1], "the oldest go first"
    assert outputs[0].startswith("x" * 300 + "\n") and outputs[0].endswith("x" * 200)
    assert "2,500 characters" in outputs[0]
    assert all(cell.text == "x" * 3000 for cell in record.cells), "the cells keep what was seen"
    # So that the last prompt fits: a third of a token a character, with the reply.
    assert sum(len(str(message)) for message in record.messages[:-1]) / 3 + 500 < 4400


async def test_a_refused_conversation_is_shortened_and_sent_again() -> None:
    sizes: list[int] = []

    async def respond(sent: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> Reply:
        sizes.append(sum(len(message["content"]) for message in sent))
        if sizes[-1] > 9000:
            raise ContextOverflow("too long")
        text = CELL if len(sent) < 14 else "final_answer: 42"
        return Reply(message={"role": "assistant", "content": text})

    episode = await led(respond, output="x" * 3000)
    assert episode.record.reward == 1.0 and episode.record.shortened_outputs >= 3 and max(sizes) > 9000


async def test_a_question_that_never_fits_has_its_own_end() -> None:
    episode = await led(saying(ContextOverflow("too long")))
    assert episode.record.stop_reason == "context_limit" and episode.record.turns == 0
    episode = await led(saying(CELL), AgentSettings(context_tokens=600, reply_tokens=100), output="x" * 3000)
    assert episode.record.stop_reason == "context_limit" and episode.record.shortened_outputs >= 1


async def test_an_unavailable_model_leaves_the_episode_open() -> None:
    with pytest.raises(ModelUnavailable):
        await led(saying(CELL, ModelUnavailable("gone")))


@pytest.mark.parametrize("family", PROMPTS)
def test_prompts_are_files(family: str, tmp_path: Path) -> None:
    settings = agent_settings(family)
    assert "execute_code" in settings.system_prompt and settings.require_comment == (family == "code")
    own = tmp_path / "own.txt"
    own.write_text("Be brief.\n")
    assert agent_settings(str(own)).system_prompt == "Be brief."
    with pytest.raises(ValueError, match="the prompts are"):
        agent_settings("no-such")


# The whole stack: a real server that misbehaves, real kernels, the files of a run.


async def rolled(
    behave: Callable[[dict[str, Any], int], Answer], folder: Path, n: int = 1, timeout_s: float = 5
) -> list[EpisodeRecord]:
    with ScriptedServer(behave) as server:
        model = ServerModel("tiny", server.url, timeout_s=timeout_s, max_retries=2)
        pool = TaskPool([TASK])
        jobs = plan(pool, ["tiny"], n)
        try:
            return await rollout(jobs, pool, {"tiny": lambda task, seed: model.seeded(seed)}, folder / "episodes.jsonl")
        finally:
            await model.close()


def right_after(first: Answer) -> Callable[[dict[str, Any], int], Answer]:
    """Says this on the first turn of an episode, and the right answer after it."""
    return lambda body, number: first if len(body["messages"]) == 2 else answered("42")


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (completion(calls=[call("execute_code", "[1, 2]")]), "JSON object"),
        (completion(calls=[call("execute_code", '{"code": "1')]), "no JSON object"),
        (completion(calls=[call("execute_code", "null")]), "JSON object"),
        (completion(calls=[{"id": 5, "function": {"name": None, "arguments": None}}]), "no tool"),
        (completion(calls=[{"id": "x"}]), "no tool"),
        (completion(calls=["execute_code"]), "no object with a function"),
        (completion(calls=[call("run", {"code": "1"})]), "no tool 'run'"),
        (completion(calls=[call("execute_code", {"code": "1"}), call("final_answer", {"answer": "1"})]), "2 calls"),
        (completion(None), "no call"),
        (completion(""), "no call"),
        (completion("<tool_call>{bad</tool_call>"), "not valid JSON"),
        (completion(["odd", {"text": 3}]), "no call"),  # type: ignore[arg-type]
        (completion("\ud800 half a pair"), "no call"),
        (completion("<think>forever", finish="length"), "cut at the token limit"),
    ],
    ids=str,
)
async def test_a_bad_message_is_an_observation(first: Answer, told: str, tmp_path: Path) -> None:
    [record] = await rolled(right_after(first), tmp_path)
    assert record.reward == 1.0 and record.malformed_turns == 1
    assert told in record.messages[3]["content"]


async def test_cells_run_over_the_wire(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], number: int) -> Answer:
        if len(body["messages"]) == 2:
            return ran("x = 6 * 7\nprint(x)")
        if len(body["messages"]) == 4:
            assert body["messages"][3] == {"role": "tool", "tool_call_id": "c1", "content": "42"}
            return completion('<tool_call>{"name": "execute_code", "arguments": {"code": "x + 1"}}</tool_call>')
        return answered("42")

    [record] = await rolled(behave, tmp_path)
    assert [cell.text for cell in record.cells] == ["42", "43"] and record.reward == 1.0


@pytest.mark.parametrize(
    "trouble",
    [
        completion("late")._replace(delay_s=1.5),
        error(429, "slow down", Retry_After="0.1"),
        error(503, "loading"),
        Answer(b"\x00\xffgarbage"),
        Answer(b"<html>Welcome to nginx</html>", kind="text/html"),
        completion("x" * 9000)._replace(cut=True),
        Answer(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: {"cho', kind="text/event-stream"),
        Answer(b'{"choices": []}'),
    ],
    ids=["slow", "rate-limited", "busy", "garbage", "html", "cut", "half a stream", "no choices"],
)
async def test_each_kind_of_trouble_is_outlived(trouble: Answer, tmp_path: Path) -> None:
    """On the first try of each of two turns; the episode never knows."""
    tried: set[int] = set()

    def behave(body: dict[str, Any], number: int) -> Answer:
        turn = len(body["messages"])
        if turn not in tried:
            tried.add(turn)
            return trouble
        return ran("1") if turn == 2 else answered("42")

    [record] = await rolled(behave, tmp_path, timeout_s=1.0)
    assert record.reward == 1.0 and record.usage.retries == 2 and record.malformed_turns == 0
    assert record.attempt == 1 and (tmp_path / "failures.jsonl").read_bytes() == b""


async def test_a_context_that_overflows_is_shortened_over_the_wire(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], number: int) -> Answer:
        if sum(len(message["content"]) for message in body["messages"]) > 12_000:
            return error(400, "This model's maximum context length is 4096 tokens, please reduce the length")
        return ran("print('y' * 900 + chr(10), end='')\n" * 4) if len(body["messages"]) < 14 else answered("42")

    [record] = await rolled(behave, tmp_path)
    assert record.reward == 1.0 and record.shortened_outputs > 0 and len(record.cells) == 6
    assert any("were removed to make room" in str(message["content"]) for message in record.messages)


async def test_a_server_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], number: int) -> Answer:
        return ran("1") if len(body["messages"]) == 2 else answered("42")

    pool = TaskPool([TASK])
    with ScriptedServer(behave) as server:
        port = server.port
    model = ServerModel("tiny", f"http://127.0.0.1:{port}/v1", max_retries=6)
    agents = {"tiny": lambda task, seed: model.seeded(seed)}
    run = asyncio.create_task(rollout(plan(pool, ["tiny"], 3), pool, agents, tmp_path / "episodes.jsonl"))
    await asyncio.sleep(4)
    assert not run.done()
    with ScriptedServer(behave, port=port):
        records = await run
    await model.close()
    assert [record.reward for record in records] == [1.0] * 3 and all(record.usage.retries for record in records)


async def test_trouble_at_the_server_loses_no_episode(tmp_path: Path) -> None:
    """Every third request gets trouble of some kind, and every episode ends right all the same."""
    trouble = [error(503, "busy"), Answer(b"<html>", 200, "text/html"), completion("x")._replace(cut=True)]

    def behave(body: dict[str, Any], number: int) -> Answer:
        if number % 3 == 0:
            return trouble[number // 3 % 3]
        return ran("1") if len(body["messages"]) == 2 else answered("42")

    records = await rolled(behave, tmp_path, n=6)
    assert [record.reward for record in records] == [1.0] * 6
    assert sum(record.usage.retries for record in records) >= 3


async def test_a_server_that_fails_one_conversation_for_good_costs_that_episode_only(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], number: int) -> Answer:
        return error(400, "I refuse") if body["seed"] == 1 else answered("42")

    records = await rolled(behave, tmp_path, n=3)
    assert [record.stop_reason for record in records] == ["answered", "infrastructure_error", "answered"]
    assert "I refuse" in (records[1].error or "") and records[1].reward is None
    assert [record.seed for record in read_records(tmp_path / "episodes.jsonl")] in ([0, 2], [2, 0])
    failures = list(read_records(tmp_path / "failures.jsonl"))
    assert [record.attempt for record in failures] == [1, 2, 3] and len({record.id for record in failures}) == 3
    # The next run of the same jobs makes only the lost one anew.
    asked: list[int] = []

    def well(body: dict[str, Any], number: int) -> Answer:
        asked.append(body["seed"])
        return answered("42")

    records = await rolled(well, tmp_path, n=3)
    assert [record.reward for record in records] == [1.0] * 3 and asked == [1]
