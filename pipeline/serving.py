"""A model server of this task's own, for clusters without a pool of them: started, waited for, ended with the task."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

from jupyter_env.chat import ModelSetupError
from pipeline.models import ModelSettings

_PR_SET_PDEATHSIG = 1

END_GRACE_S = 20.0
"""From the polite signal to the other: a server that holds GPUs should let go of them itself."""


@contextmanager
def served(settings: ModelSettings, log: Path) -> Iterator[tuple[str, ...]]:
    """The base URLs of the model: its endpoints, or one server that lives as long as the block.

    Raises:
        ModelSetupError: the server ended or did not answer within `start_timeout_s`; the message has its last lines.
    """
    if not settings.serve:
        yield settings.endpoints
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        word.replace("{model}", settings.name).replace("{port}", str(port)) for word in shlex.split(settings.serve)
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            server = subprocess.Popen(
                words, stdout=output, stderr=output, start_new_session=True, preexec_fn=_end_with_the_parent
            )
        except OSError as error:
            raise ModelSetupError(f"`{words[0]}` can't be started: {error}") from None
        try:
            _wait_until_ready(server, f"http://127.0.0.1:{port}", settings.start_timeout_s, log)
            yield (f"http://127.0.0.1:{port}/v1",)
        finally:
            _end(server)


def _end_with_the_parent() -> None:
    """A task that is killed must not leave a server on its GPUs (Linux; elsewhere it does)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, timeout_s: float, log: Path) -> None:
    deadline = time.monotonic() + timeout_s
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches this machine's 127.0.0.1
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ModelSetupError(f"the model server ended with {server.returncode}; its log {log} ends:\n{_tail(log)}")
        if any(_answers(direct, f"{url}{path}") for path in ("/health", "/v1/models")):
            return
        time.sleep(0.5)
    raise ModelSetupError(f"the model server was not ready within {timeout_s:g} s; its log {log} ends:\n{_tail(log)}")


def _answers(direct: urllib.request.OpenerDirector, address: str) -> bool:
    """Whether a server is up there: vLLM and transformers have the first address, other servers at least the second."""
    try:
        with direct.open(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # up, and it wants the key that requests will bring
    except (OSError, HTTPException):
        return False


def _end(server: subprocess.Popen[bytes]) -> None:
    """The server and all that it started."""
    for number, wait_s in ((signal.SIGTERM, END_GRACE_S), (signal.SIGKILL, 10.0)):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        try:
            server.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
    server.wait()


def _tail(log: Path, limit: int = 1500) -> str:
    return log.read_bytes()[-limit:].decode("utf-8", "replace")
