"""The client against a server that answers well and badly, over a real socket."""

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from servers import Answer, ScriptedServer, answered, call, completion, error

from jupyter_env.action import tool_schemas
from jupyter_env.chat import ContextOverflow, ModelSetupError, ModelUnavailable, Usage
from jupyter_env.models import server as module
from jupyter_env.models.server import Sampling, ServerModel

MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float | None]]:
    """Tries follow at once; gives what would have been waited for."""
    asked: list[tuple[int, float | None]] = []

    def delay(attempt: int, asked_s: float | None) -> float:
        asked.append((attempt, asked_s))
        return 0.0

    monkeypatch.setattr(module, "_delay_s", delay)
    return asked


async def ask(server: ScriptedServer, messages: Any = MESSAGES, tools: Any = (), **options: Any) -> Any:
    model = ServerModel("tiny", server.url, **options)
    try:
        return await model(messages, tools)
    finally:
        await model.close()


async def test_a_turn_with_reasoning_calls_and_usage() -> None:
    def behave(body: dict[str, Any], number: int) -> Answer:
        return completion("Hm.", [call("execute_code", {"code": "1"})], "tool_calls", reasoning="I think.")

    with ScriptedServer(behave) as server:
        model = ServerModel("tiny", server.url, sampling=Sampling(temperature=0.5, extra={"top_k": 3}))
        reply = await model(MESSAGES, tool_schemas(), seed=7)
        assert reply.finish_reason == "tool_calls"
        assert reply.message["reasoning_content"] == "I think." and reply.message["content"] == "Hm."
        assert reply.usage == Usage(requests=1, prompt_tokens=100, cached_tokens=60, completion_tokens=10)
        sent = server.requests[0]
        assert (sent["temperature"], sent["top_k"], sent["seed"], sent["max_tokens"]) == (0.5, 3, 7, 4096)
        assert sent["tools"] == tool_schemas() and sent["tool_choice"] == "auto"
        # The reasoning goes back under the name that this server used, the arguments as text.
        stored = {**reply.message, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"code": "ü"}}}]}
        await model([*MESSAGES, stored, {"role": "tool", "tool_call_id": "c", "content": "1"}])
        back = server.requests[1]["messages"][2]
        assert back["reasoning"] == "I think." and "reasoning_content" not in back
        assert json.loads(back["tool_calls"][0]["function"]["arguments"]) == {"code": "ü"}
        assert model.usage.requests == 2 and model.usage.prompt_tokens == 200
        await model.close()


@pytest.mark.parametrize(
    "bad",
    [
        error(429, "slow down", Retry_After="7"),
        error(408, "timed out"),
        error(500, "oops"),
        Answer(b"<html>Bad gateway</html>", 502, "text/html"),
        Answer(b"<html>Welcome!</html>", 200, "text/html"),
        Answer(b"", 200),
        Answer(b'{"choices": [', 200),
        Answer(b"[1, 2]", 200),
        Answer(b"\xff\xfe\x00", 200),
        Answer(b'{"choices": []}', 200),
        Answer(b'{"choices": null}', 200),
        Answer(b'{"choices": [{"message": null}]}', 200),
        Answer(b'{"error": {"message": "overloaded"}}', 200),
        Answer(b"[" * 100_000, 200),
        Answer(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: {"cho', 200, "text/event-stream"),
        completion("x" * 5000)._replace(cut=True),
        completion("slow")._replace(delay_s=1.5),
    ],
    ids=lambda answer: f"{answer.status} {answer.kind} {answer.body[:20]!r}{' cut' * answer.cut}",
)
async def test_what_is_worth_another_try_gets_it(bad: Answer, no_waiting: list[tuple[int, float | None]]) -> None:
    with ScriptedServer(lambda body, number: bad if number < 2 else completion("well")) as server:
        # Ample where the answer is not late: a busy machine must not make it so.
        reply = await ask(server, timeout_s=1.0 if bad.delay_s else 20.0)
        assert reply.message["content"] == "well" and reply.usage.retries == 2
        assert len(server.requests) == 3
    assert [attempt for attempt, _ in no_waiting] == [0, 1]
    assert no_waiting[0][1] == (7.0 if bad.status == 429 else None)
    with ScriptedServer(lambda body, number: bad) as server:
        with pytest.raises(ModelUnavailable, match=r"gave up after 2 tries"):
            await ask(server, timeout_s=0.5 if bad.delay_s else 20.0, max_retries=1)
        assert len(server.requests) == 2


async def test_a_server_that_is_down_is_unavailable() -> None:
    model = ServerModel("tiny", "http://127.0.0.1:9/v1", max_retries=1)
    with pytest.raises(ModelUnavailable, match="cannot be reached"):
        await model(MESSAGES)
    with pytest.raises(ModelSetupError, match="cannot be reached"):
        await model.check()
    await model.close()


async def test_a_drip_of_bytes_ends_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own timeout would start anew with each byte."""
    import asyncio

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
        try:
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    model = ServerModel(
        "tiny", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", timeout_s=0.5, max_retries=0
    )
    began = time.monotonic()
    with pytest.raises(ModelUnavailable, match=r"no answer within 0\.5 s"):
        await model(MESSAGES)
    assert time.monotonic() - began < 3
    await model.close()
    server.close()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (error(401, "Incorrect API key provided: sk-secret"), "refused the key"),
        (error(403, "no"), "refused the key"),
        (error(404, "The model `tiny2` does not exist"), "it has tiny"),
        (Answer(b"<html>nothing here</html>", 404, "text/html"), "knows no model"),
        (error(429, "You exceeded your quota: insufficient_quota"), "quota"),
    ],
)
async def test_what_can_never_work_is_said_at_once(bad: Answer, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with ScriptedServer(lambda body, number: bad, probe=bad) as server:
        with pytest.raises(ModelSetupError, match=message) as raised:
            await ask(server)
        assert len(server.requests) == 1
        assert "sk-secret" not in str(raised.value)
        model = ServerModel("tiny", server.url)
        with pytest.raises(ModelSetupError, match=message):
            await model.check()
        await model.close()


async def test_a_server_without_tool_calls_is_found_at_the_start() -> None:
    refusal = error(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
    with ScriptedServer(lambda body, number: completion("x"), probe=refusal) as server:
        model = ServerModel("tiny", server.url)
        with pytest.raises(ModelSetupError, match="enable-auto-tool-choice"):
            await model.check()
        await model.close()


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens",
        "The decoder prompt (length 3000) is longer than the maximum model length of 2048.",
        "The input (3000 tokens) is longer than the model's context length (2048 tokens).",
        "the request exceeds the available context size. try increasing the context size",
        "prompt is too long: 213462 tokens > 200000 maximum",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048.",
    ],
)
async def test_a_conversation_that_is_too_long_is_told_apart(words: str) -> None:
    with ScriptedServer(lambda body, number: error(400, words)) as server:
        with pytest.raises(ContextOverflow):
            await ask(server)
        assert len(server.requests) == 1
    with ScriptedServer(lambda body, number: error(400, "messages must alternate")) as server:
        with pytest.raises(ModelUnavailable, match="messages must alternate"):
            await ask(server)
        assert len(server.requests) == 1


async def test_the_context_is_what_the_server_says() -> None:
    with ScriptedServer(lambda body, number: completion("x"), max_model_len=4096) as server:
        model = ServerModel("tiny", server.url)
        await model.check()
        assert model.context_tokens == 4096 and server.requests == []
        await model.close()


async def test_no_more_requests_at_a_time_than_agreed() -> None:
    import asyncio

    with ScriptedServer(lambda body, number: completion("x")._replace(delay_s=0.05)) as server:
        model = ServerModel("tiny", server.url, concurrency=3)
        await asyncio.gather(*(model(MESSAGES) for _ in range(12)))
        await model.close()
        assert server.most_at_once == 3 and len(server.requests) == 12


class Score(msgspec.Struct):
    reason: str
    points: int


async def test_structured_replies_are_constrained_and_checked() -> None:
    texts = ['<think>hm</think>{"reason": "good", "points": 4}', '{"reason": "good", "points": "many"}', "I cannot"]

    def behave(body: dict[str, Any], number: int) -> Answer:
        return completion(texts[number]) if number < 3 else completion('{"rea', finish="length")

    with ScriptedServer(behave) as server:
        model = ServerModel("tiny", server.url)
        assert await model.structured(MESSAGES, Score) == Score(reason="good", points=4)
        form = server.requests[0]["response_format"]
        assert form["type"] == "json_schema" and form["json_schema"]["schema"]["required"] == ["reason", "points"]
        for message in ("points", "no Score", "cut at"):
            with pytest.raises(ModelUnavailable, match=message):
                await model.structured(MESSAGES, Score)
        await model.close()


def test_waiting_honours_the_server_and_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 0.3 < module._delay_s(0, None) < 0.7
    assert 20 < module._delay_s(20, None) < 40
    assert 7 <= module._delay_s(0, 7.0) <= 7.7
    assert module._delay_s(0, 1e9) <= 132


async def test_the_key_appears_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any) -> None:
    import logging

    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush")
    caplog.set_level(logging.DEBUG)
    with ScriptedServer(lambda body, number: answered("1")) as server:
        await ask(server)
        assert server.headers[0]["authorization"] == "Bearer sk-hush"
    assert "sk-hush" not in caplog.text


@pytest.mark.parametrize(("variable", "sent"), [("TEACHER_KEY", "none"), ("OPENAI_API_KEY", "sk-mine")])
async def test_a_key_goes_only_where_it_was_meant_to(variable: str, sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named variable that is not set, or misspelt, must not bring OpenAI's key to another server."""
    from jupyter_env.commands.run import ModelSpec
    from pipeline.models import EndpointPool, ModelSettings

    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with ScriptedServer(lambda body, number: answered("1")) as server:
        model = ModelSpec("tiny", server.url, api_key_env=variable).connect()
        await model(MESSAGES)
        await model.close()
        pool = EndpointPool(ModelSettings(name="tiny", api_key_env=variable), [server.url], concurrency=1)
        await pool.ask("", MESSAGES)
        await pool.close()
        assert [headers["authorization"] for headers in server.headers] == [f"Bearer {sent}"] * 2


async def test_a_missing_key_is_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    refusal = error(401, "who are you?")
    with (
        ScriptedServer(lambda body, number: refusal) as server,
        pytest.raises(ModelSetupError, match="None was sent"),
    ):
        await ask(server)


async def test_tools_can_be_written_as_text_for_servers_that_know_none() -> None:
    from jupyter_env.chat import render

    text = '<tool_call>\n{"name": "execute_code", "arguments": {"code": "1"}}\n</tool_call>'
    with ScriptedServer(lambda body, number: completion(text)) as server:
        called = {"role": "assistant", "content": "Hm.", "tool_calls": [call("execute_code", {"code": "1"})]}
        called["tool_calls"][0]["function"]["arguments"] = {"code": "1"}
        output = {"role": "tool", "tool_call_id": "c1", "content": "1"}
        await ask(server, [*MESSAGES, called, output], tool_schemas(), tools_as_text=True)
        [sent] = server.requests
    assert "tools" not in sent and [message["role"] for message in sent["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    # The same text as the rendering that training uses, but for its empty think block.
    rendered = render([*MESSAGES, called, output], tool_schemas()).replace("<think>\n\n</think>\n\n", "")
    marked = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in sent["messages"])
    assert marked == rendered
