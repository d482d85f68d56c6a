"""A local server that speaks what the E2B SDK speaks, over real sockets, with a real kernel behind each sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import select
import shutil
import tempfile
import threading
import time
import urllib.parse
from concurrent.futures import CancelledError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jupyter_env.blocking import LoopThread
from jupyter_env.interpreters import CellResult, KernelSettings, LocalKernel

FORMATS = {"text/plain": "text", "text/html": "html", "image/png": "png"}


class E2BServer:
    """`with E2BServer() as server`; what it was asked is in `requests`, the live sandboxes in `sandboxes`."""

    def __init__(self, refuse: dict[str, int] | None = None) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.refuse = refuse or {}
        """Status to answer with, by the beginning of `METHOD /path`."""
        self.sandboxes: dict[str, LocalKernel] = {}
        self.create_delay_s = 0.0
        self._loop = LoopThread()
        self._folder = Path(tempfile.mkdtemp(prefix="e2b-"))
        self._numbers = itertools.count()
        self._turn = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(server.status_of("GET", self.path), None)

            def do_DELETE(self) -> None:
                refused = server.status_of("DELETE", self.path)
                self.answer(refused if refused != 204 else server.kill(self.path.rpartition("/")[2]), None)

            def do_POST(self) -> None:
                body = self.body()
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                address = urllib.parse.urlsplit(self.path)
                status = server.status_of("POST", address.path)
                if status != 204:
                    self.answer(status, {"code": status, "message": "refused"})
                elif address.path == "/v2/sandboxes":
                    time.sleep(server.create_delay_s)
                    self.answer(201, server.create(json.loads(body)))
                elif address.path == "/files":
                    path = urllib.parse.parse_qs(address.query)["path"][0]
                    self.answer(200, [server.write(path, body)])
                else:
                    self.execute(json.loads(body)["code"])

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def execute(self, code: str) -> None:
                server.requests.append(("POST", "/execute", code))
                kernel = server.sandboxes.get(self.headers["E2b-Sandbox-Id"])
                if kernel is None:
                    self.answer(502, {"message": "The sandbox was not found"})
                    return
                done = threading.Event()
                result: list[CellResult] = []

                def run() -> None:
                    # Cells queue, as they do in a kernel; one of a sandbox that is killed has no result.
                    with server._turn, contextlib.suppress(CancelledError):
                        result.append(server._loop.run(kernel.run_cell(code, 100)))
                    done.set()

                threading.Thread(target=run, daemon=True).start()
                while not done.wait(0.02):
                    if select.select([self.connection], [], [], 0)[0]:  # hung up: the cell is interrupted
                        server._loop.run(kernel.interrupt())
                        done.wait(20)
                        self.close_connection = True
                        return
                lines = "".join(json.dumps(line) + "\n" for line in events(result[0]))
                self.answer(200, lines)

            def answer(self, status: int, body: Any) -> None:
                content = body if isinstance(body, str) else json.dumps(body) if body is not None else ""
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # the client has hung up, as it may

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def options(self) -> dict[str, Any]:
        """For the SDK, to come here."""
        return {"api_key": "e2b_" + "0" * 40, "api_url": self.url, "sandbox_url": self.url, "http_version": "1.1"}

    def status_of(self, method: str, path: str) -> int:
        self.requests.append((method, path, None))
        return next((status for key, status in self.refuse.items() if f"{method} {path}".startswith(key)), 204)

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = f"sandbox{next(self._numbers)}"
        self.requests.append(("CREATE", name, asked))
        (self._folder / "data").mkdir(exist_ok=True)
        kernel = LocalKernel(KernelSettings(interrupt_grace_s=1.0))
        self._loop.run(kernel.start({}))
        self._loop.run(kernel.run_cell(f"import os; os.chdir({str(self._folder)!r})", 20))
        self.sandboxes[name] = kernel
        return {"sandboxID": name, "templateID": "t", "clientID": "c", "envdVersion": "0.6.0", "envdAccessToken": "a"}

    def write(self, path: str, content: bytes) -> dict[str, str]:
        local = self._folder / path.removeprefix("/home/user/")
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(content)
        return {"name": local.name, "type": "file", "path": path}

    def kill(self, name: str) -> int:
        kernel = self.sandboxes.pop(name, None)
        if kernel is None:
            return 404
        self._loop.run(kernel.close())
        return 204

    def __enter__(self) -> E2BServer:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for name in list(self.sandboxes):
            self.kill(name)
        self._loop.run(asyncio.sleep(0))
        self._loop.close()
        shutil.rmtree(self._folder)


def events(result: CellResult) -> list[dict[str, Any]]:
    """A cell's result as the lines that the sandbox's server streams."""
    if result.status == "kernel_died":
        return [{"type": "error", "name": "ContextRestarting", "value": "Context was restarted", "traceback": ""}]
    lines: list[dict[str, Any]] = []
    for output in result.outputs:
        if output["output_type"] == "stream":
            lines.append({"type": output["name"], "text": output["text"], "timestamp": 1})
        elif output["output_type"] == "error":
            traceback = "\n".join(output["traceback"])
            lines.append({"type": "error", "name": output["ename"], "value": output["evalue"], "traceback": traceback})
        else:
            known = {FORMATS[kind]: value for kind, value in output["data"].items() if kind in FORMATS}
            lines.append({"type": "result", **known, "is_main_result": output["output_type"] == "execute_result"})
    return [*lines, {"type": "number_of_executions", "execution_count": 1}]
