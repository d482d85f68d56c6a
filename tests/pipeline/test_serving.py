"""Where models are: a pool of endpoints, a server of the task's own, and how much of it is used at a time."""

import asyncio
import os
import shlex
import sys
from collections import Counter
from pathlib import Path

import msgspec
import psutil
import pytest
from authored import sources, write_inputs
from runs import ids, run_here
from servers import ScriptedServer, completion, error

from jupyter_env.chat import ModelSetupError
from jupyter_env.models import server
from pipeline.estimate import estimate
from pipeline.models import EndpointPool, ModelSettings
from pipeline.recipe import Recipe, load_recipe
from pipeline.run_folder import RunFolder
from pipeline.serving import served
from pipeline.stages.ask import Ask, AskSettings

TESTS = Path(__file__).resolve().parent
PENGUINS = [source for source in sources() if source.name == "penguins"]


def test_conversations_stay_with_their_server_until_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_delay_s", lambda attempt, asked_s: 0.01)
    asked: list[Counter[str]] = [Counter(), Counter()]
    down = False

    def counting(number: int):  # type: ignore[no-untyped-def]
        def behave(body, _):  # type: ignore[no-untyped-def]
            if down and number == 0:
                return error(503, "down")
            asked[number][body["messages"][0]["content"]] += 1
            return completion("yes")

        return behave

    async def ask(urls: list[str]) -> None:
        nonlocal down
        pool = EndpointPool(ModelSettings(name="tiny", max_retries=1), urls, 8)
        for down in (False, True):
            for n in range(16):
                for _ in range(2):
                    await pool.ask(f"notebook {n}", [{"role": "user", "content": f"{down} {n}"}])
        await pool.close()

    with ScriptedServer(counting(0)) as one, ScriptedServer(counting(1)) as two:
        asyncio.run(ask([one.url, two.url]))
    first = {text for text in asked[0] if text.startswith("False")}
    assert 3 < len(first) < 13, "shared about evenly"
    assert all(count == 2 for count in asked[0].values()), "both calls at the same server"
    assert sum(text.startswith("True") for text in asked[1]) == 16, "the other takes over"


def test_the_caches_room_bounds_what_is_under_way() -> None:
    """262 kB a token: 40 GB hold 152,587 tokens, nine notebooks of 8,000 with two replies of 4,096."""
    model = ModelSettings(name="m")
    assert model.conversations_in_cache(5800) == 26
    assert Ask(RunFolder(Path("x")), AskSettings(), model).in_flight == 9
    assert Ask(RunFolder(Path("x")), AskSettings(), model, workers=3).in_flight == 3
    two = msgspec.structs.replace(model, endpoints=("a", "b"))
    assert Ask(RunFolder(Path("x")), AskSettings(), two).in_flight == 18


def serve_command(*words: str) -> str:
    return shlex.join([sys.executable, str(TESTS / "scripted.py"), "{port}", *words])


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS), str(TESTS.parents[1])]))


def test_a_server_of_the_tasks_own(tmp_path: Path, importable: None) -> None:
    """Started with the stage, asked, and gone at its end, as in a Slurm task."""
    write_inputs(tmp_path / "in", tmp_path / "data", PENGUINS)
    model = ModelSettings(name="tiny", serve=serve_command(), start_timeout_s=60)
    recipe = Recipe(tasks=1, workers=1, asker=model)
    run = run_here(tmp_path / "run", tmp_path / "in", until="ask", recipe=recipe, data=str(tmp_path / "data"))
    assert ids(run, "ask") == ["penguins.ipynb"]
    left = [p for p in psutil.Process().children(recursive=True) if "scripted.py" in " ".join(p.cmdline())]
    assert not left


@pytest.mark.parametrize(
    ("command", "timeout_s", "message"),
    [
        ("no-such-program --port {port}", 5, "can't be started"),
        (shlex.join([sys.executable, "-c", "import sys; sys.exit('no GPU')"]), 30, "no GPU"),
        (shlex.join([sys.executable, "-c", "import time; time.sleep(60)"]), 1, "not ready within 1 s"),
    ],
)
def test_servers_that_do_not_come_up(tmp_path: Path, command: str, timeout_s: float, message: str) -> None:
    settings = ModelSettings(name="tiny", serve=command, start_timeout_s=timeout_s)
    with pytest.raises(ModelSetupError, match=message), served(settings, tmp_path / "log"):
        pass


LOCKED = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        if Handler.asked == 1:
            self.wfile.write(b"still loading\\r\\n\\r\\n")  # no HTTP
        else:
            self.send_error(401)

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_that_wants_a_key_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it said while it was loading, and with a proxy in the environment that knows nothing of it."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    command = shlex.join([sys.executable, "-c", LOCKED, "{port}"])
    with served(ModelSettings(name="tiny", serve=command, start_timeout_s=20), tmp_path / "log") as urls:
        assert urls[0].endswith("/v1")


def test_recipes_serve_or_name_servers() -> None:
    slurm, ray = load_recipe("kaggle-slurm"), load_recipe("kaggle-ray")
    for role in ("asker", "teacher"):
        assert "vllm serve {model} --port {port}" in getattr(slurm, role).serve
        assert getattr(ray, role).endpoints
    assert slurm.asker_slurm and slurm.asker_slurm.sbatch_args == {"gres": "gpu:h100:1"}
    assert slurm.last_stage == "export" and load_recipe("laptop").last_stage == "render"


def test_an_estimate_before_anything_was_read(tmp_path: Path) -> None:
    plan = estimate(RunFolder(tmp_path), load_recipe("kaggle-slurm"), 750_000)
    assert plan["notebooks_scored"] == 225_000
    assert plan["asker"]["prefill_tokens"] > 225_000 * 5800
    assert 100 < plan["asker"]["gpu_hours"] < 1000
    assert plan["teacher"]["gpu_hours"] > plan["asker"]["gpu_hours"]
