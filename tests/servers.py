"""A model server of the tests: real HTTP on a real socket, answering as it is told to, well or badly."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from jupyter_env import TaskPool
from jupyter_env.episode import EpisodeRecord
from jupyter_env.rollout import plan, rollout


async def rolled_out(model: Any, pool: TaskPool, n: int, out: Path) -> list[EpisodeRecord]:
    """The model's episodes on each task of the pool; it is closed after them."""
    try:
        await model.check()
        agents = {"model": lambda task, seed: model.seeded(seed)}
        return await rollout(plan(pool, ["model"], n), pool, agents, out)
    finally:
        await model.close()


class Answer(NamedTuple):
    """One HTTP response."""

    body: bytes
    status: int = 200
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    cut: bool = False
    """Say that the whole body comes, send half of it, and hang up."""


def completion(
    content: str | None = None, calls: list[Any] | None = None, finish: str = "stop", **message: Any
) -> Answer:
    """A chat completion with text or tool calls."""
    if calls is not None:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 60}}
    return Answer(json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode())


def call(name: str, arguments: Any, call_id: str = "c1") -> dict[str, Any]:
    """A native tool call; arguments that are no text are sent as JSON text."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def answered(answer: str) -> Answer:
    """A completion that calls final_answer."""
    return completion(calls=[call("final_answer", {"answer": answer})], finish="tool_calls")


def ran(code: str) -> Answer:
    """A completion that calls execute_code."""
    return completion(calls=[call("execute_code", {"code": code})], finish="tool_calls")


def error(status: int, message: str, **headers: str) -> Answer:
    """An error as OpenAI writes it."""
    body = json.dumps({"error": {"message": message, "type": "x", "code": None}}).encode()
    return Answer(body, status, headers=tuple((name.replace("_", "-"), value) for name, value in headers.items()))


Behave = Callable[[dict[str, Any], int], Answer]
"""From a request's body and its number, from 0, to the answer. Requests for one token are probes and not counted."""


class ScriptedServer:
    """A server on a free port of this machine, until the `with` block ends."""

    def __init__(
        self, behave: Behave, max_model_len: int | None = None, probe: Answer | None = None, port: int = 0
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        card = {"id": "tiny", "max_model_len": max_model_len} if max_model_len else {"id": "tiny"}
        lock, server, self._at_once = threading.Lock(), self, 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(Answer(json.dumps({"object": "list", "data": [card]}).encode()))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if body.get("max_tokens") == 1:
                    self.reply(probe or completion("Hi"))
                    return
                with lock:
                    number = len(server.requests)
                    server.requests.append(body)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                try:
                    self.reply(behave(body, number))
                finally:
                    with lock:
                        server._at_once -= 1

            def reply(self, answer: Answer) -> None:
                time.sleep(answer.delay_s)
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("Content-Type", answer.kind)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)
                self.close_connection = answer.cut

            def log_message(self, *arguments: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError):  # the client has hung up, or was killed in mid-request
                    super().handle()

        class Server(ThreadingHTTPServer):
            request_queue_size = 512
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
