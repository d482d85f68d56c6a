"""Real models over the wire and in process: `make test-serve`, `make test-vllm`.

The model is tiny and has learned one episode by heart (`tiny_model.py`), so that its calls are a model's, not a
script's: tokens out of weights, through the server's own chat template and tool parser.
"""

import asyncio
import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from servers import rolled_out
from serving import VLLM, serving

from jupyter_env import Task, TaskPool
from jupyter_env.answer import Integer
from jupyter_env.chat import ContextOverflow, ModelSetupError, ModelUnavailable
from jupyter_env.episode import EpisodeRecord
from jupyter_env.evaluate import evaluate
from jupyter_env.interpreters import CellResult, SimulatedInterpreter
from jupyter_env.models.server import Sampling, ServerModel

ROOT = Path(__file__).parents[2]
POOL = TaskPool([Task(id="a", question="What is 6 times 7?", answer=Integer(value=42))])
GREEDY = Sampling(temperature=0.0, max_tokens=64)
DRAWN = Sampling(temperature=1.0, max_tokens=256)
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run([sys.executable, str(ROOT / "tests" / "tiny_model.py"), str(folder)], check=True)
    return folder


def rolled(model: Any, folder: Path, n: int = 4) -> list[EpisodeRecord]:
    return asyncio.run(rolled_out(model, POOL, n, folder / "episodes.jsonl"))


def assert_worked(records: list[EpisodeRecord]) -> None:
    assert [record.reward for record in records] == [1.0] * len(records), records[0]
    assert all([cell.code for cell in record.cells] == ["print(6 * 7)"] for record in records)
    assert all(record.usage.requests == 2 and record.usage.completion_tokens > 20 for record in records)
    [score] = evaluate(records)
    assert score.pass_at[1] == 1.0 and score.cost.model_s > 0


@pytest.mark.serve
def test_transformers_serve(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    command = [str(Path(sys.executable).parent / "transformers"), "serve"]
    with serving(command, tmp_path / "log", "/health") as url:
        records = rolled(ServerModel(str(tiny), url, sampling=GREEDY), tmp_path)
        assert_worked(records)
        # The server parsed the calls and gave them ids of its own.
        assert all("_tool_call_" in record.messages[2]["tool_calls"][0]["id"] for record in records)


@pytest.mark.serve
def test_transformers_serve_simulates_an_interpreter(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")

    async def simulate(url: str) -> tuple[CellResult, CellResult]:
        model = ServerModel(str(tiny), url, sampling=GREEDY)
        interpreter = SimulatedInterpreter(model, retries=1)
        await interpreter.start({})
        known = await interpreter.run_cell("print(6 * 7)", 60.0)
        other = await interpreter.run_cell("print([n for n in range(99)])", 60.0)  # not in its lessons
        await model.close()
        return known, other

    command = [str(Path(sys.executable).parent / "transformers"), "serve"]
    with serving(command, tmp_path / "log", "/health") as url:
        known, other = asyncio.run(simulate(url))
    assert (known.status, known.text) == ("ok", "42")
    assert other.status in ("ok", "infrastructure_error") and other.alive  # whatever it said, well-formed or refused


@pytest.mark.serve
def test_a_local_model_answers_in_batches(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from jupyter_env.models.local import LocalModel

    model = LocalModel(str(tiny), temperature=0.0, max_tokens=64, device="cpu")
    assert model.context_tokens == 4096
    sizes: list[int] = []
    generate = model._generate
    monkeypatch.setattr(model, "_generate", lambda batch: sizes.append(len(batch)) or generate(batch))
    assert_worked(rolled(model, tmp_path, n=6))
    assert max(sizes) > 1 and sum(sizes) == 12 and model.usage.requests == 12


@pytest.mark.serve
def test_a_local_model_says_what_is_wrong(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from jupyter_env.models.local import LocalModel

    with pytest.raises(ModelSetupError, match="cannot be loaded"):
        LocalModel(str(tmp_path))
    mute = tmp_path / "mute"
    shutil.copytree(tiny, mute)
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(ModelSetupError, match="no chat template"):
        LocalModel(str(mute))
    model = LocalModel(str(tiny), temperature=0.0, max_tokens=64, device="cpu")

    async def overflow() -> None:
        with pytest.raises(ContextOverflow):
            await model([{"role": "user", "content": "many words " * 5000}])
        await model.close()

    asyncio.run(overflow())


@pytest.mark.vllm
def test_vllm(tiny: Path, tmp_path: Path) -> None:
    assert VLLM.exists(), f"{VLLM} is missing: `make test-vllm` installs it, or set VLLM to another"
    options = ["--served-model-name", "tiny", "--enforce-eager", "--max-model-len", "2048", "--dtype", "float32"]
    tools = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with serving([str(VLLM), "serve", str(tiny), *options, *tools], tmp_path / "log", "/health") as url:
        model = ServerModel("tiny", url, sampling=GREEDY)
        records = rolled(model, tmp_path)
        assert_worked(records)
        assert model.context_tokens == 2048
        assert all(record.messages[2]["tool_calls"][0]["id"].startswith("chatcmpl-tool-") for record in records)
        asyncio.run(other_requests(url))


class Mark(msgspec.Struct):
    right: bool


async def marked(model: ServerModel) -> Mark:
    """Drawn until the schema's braces close: a schema allows white space, and a tiny model can love it."""
    for seed in range(10):
        with contextlib.suppress(ModelUnavailable):
            return await model.structured([{"role": "user", "content": "Hi"}], Mark, seed=seed)
    raise AssertionError("ten replies were cut")


async def other_requests(url: str) -> None:
    """What is refused, a reply that only the constraint of its schema can have made, and tools as text."""
    model, wrong = ServerModel("tiny", url, sampling=GREEDY), ServerModel("large", url)
    with pytest.raises(ContextOverflow):
        await model([{"role": "user", "content": "many words " * 3000}])
    with pytest.raises(ModelSetupError, match="it has tiny"):
        await wrong.check()
    drawing = ServerModel("tiny", url, sampling=DRAWN)
    assert isinstance(await marked(drawing), Mark)
    # Calls as text: what the model sees is another prompt than it has learned, but the server takes it.
    text = ServerModel("tiny", url, sampling=GREEDY, tools_as_text=True)
    await text.check()
    for each in (model, wrong, text, drawing):
        await each.close()
