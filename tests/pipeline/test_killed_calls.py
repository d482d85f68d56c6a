"""Model calls are paid once: kill -9 at random moments, servers that fail, rows that are bad."""

import contextlib
import json
import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from authored import write_inputs
from runs import ids, outcomes, run_here
from scripted import POOR, Script, kind_of
from servers import Answer, ScriptedServer, completion, error
from test_run import content, ended

from pipeline import model_stage
from pipeline.models import ModelSettings
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.stages.ask import AskSettings
from pipeline.stages.traces import TraceSettings

IN_FLIGHT = 3
STAGES = ("ask", "check", "unique", "traces", "curate")


class Troubled:
    """The script behind a server that is slow and sometimes refuses; two notebooks get replies that are no good."""

    def __init__(self, delay_s: float) -> None:
        self.script, self.delay_s = Script(), delay_s
        self.answered: Counter[str] = Counter()

    def __call__(self, body: dict[str, Any], number: int) -> Answer:
        if number % 11 == 3:
            return error(429, "slow down", Retry_After="0.01")
        if number % 13 == 5:
            return error(503, "busy")
        text = body["messages"][-1]["content"]
        answer = self.script(body, number)
        if kind_of(body) == "ask" and "# El Nino" in text:
            answer = completion("Here are some questions: ...")
        if kind_of(body) == "score" and "# Barley in" in text:
            answer = completion(json.dumps(POOR))
        self.answered[json.dumps(body, sort_keys=True)] += 1
        return answer._replace(delay_s=self.delay_s)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Ten notebooks and two rows that are none."""
    write_inputs(tmp_path / "in", tmp_path / "data")
    (tmp_path / "in" / "broken.ipynb").write_bytes((tmp_path / "in" / "cars.ipynb").read_bytes()[:300])
    (tmp_path / "in" / "empty.ipynb").write_bytes(b"")
    return tmp_path


def run(work: Path, out: Path, url: str, until: str) -> RunFolder:
    model = ModelSettings(name="tiny", endpoints=(url,), max_retries=20)
    asking, tracing = AskSettings(in_flight=IN_FLIGHT), TraceSettings(attempts=1)
    recipe = Recipe(tasks=2, workers=1, asker=model, teacher=model, ask=asking, traces=tracing)
    return run_here(out, work / "in", until=until, recipe=recipe, data=str(work / "data"))


def kill_and_resume(
    work: Path, out: Path, until: str, *, kills: int, delay_s: float, life_s: tuple[float, float]
) -> tuple[int, int, int]:
    """Kill a run at random moments and go on with it; it must then equal one that was left alone.

    Returns:
        How many calls were paid twice, how many in all, and how many were under way at most.
    """
    with ScriptedServer(calm := Troubled(0.0)) as server:
        fresh = run(work, out / "fresh", server.url, until)
    assert max(calm.answered.values()) == 1
    rng, killed, twice, paid = random.Random(3), 0, 0, 0
    with ScriptedServer(troubled := Troubled(delay_s)) as server:
        whole = False
        while killed < kills or not whole:
            if whole:  # it came to its end before it was killed often enough: once more from the beginning
                shutil.rmtree(out / "run")
                troubled.answered.clear()
            process = started(work, out / "run", server.url, until)
            whole = ended(process, rng.uniform(*life_s) if killed < kills else None)
            killed += not whole
            if whole:
                twice += sum(count - 1 for count in troubled.answered.values())
                paid += sum(troubled.answered.values())
                assert set(troubled.answered) == set(calm.answered)
                assert_the_same(RunFolder(out / "run"), fresh, until)
    return twice, paid, server.most_at_once


def started(work: Path, out: Path, url: str, until: str) -> int:
    """The run in a child of its own process group."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            run(work, out, url, until)
            code = 0
        finally:
            os._exit(code)
    with contextlib.suppress(OSError):
        os.setpgid(process, process)
    return process


def assert_the_same(resumed: RunFolder, fresh: RunFolder, until: str) -> None:
    for stage in STAGES[: STAGES.index(until) + 1]:
        assert ids(resumed, stage) == ids(fresh, stage)
        assert content(resumed, stage) == content(fresh, stage), stage
    assert outcomes(resumed, "ask")["elnino.ipynb"].reason == "reply_not_json"
    assert outcomes(resumed, "ask")["barley.ipynb"].reason == "low_score"
    assert resumed.tally("read").rejected == 2


@pytest.mark.timeout(600)
def test_killed_at_thirty_random_moments(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the stage that asks: no call is lost, and those paid twice are at most those under way."""
    monkeypatch.setattr(model_stage.ModelStage, "batch_items", 3)
    run(inputs, inputs / "out" / "run", "http://127.0.0.1:9/v1", "render")  # where models begin
    shutil.copytree(inputs / "out" / "run", inputs / "out" / "fresh")
    began = time.monotonic()
    twice, paid, most = kill_and_resume(inputs, inputs / "out", "ask", kills=30, delay_s=0.05, life_s=(0.1, 0.7))
    print(f"{twice} of {paid} calls paid twice in 30 kills, {most} under way at most; {time.monotonic() - began:.0f} s")
    assert twice <= 30 * most


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_whole_way_killed_at_thirty_random_moments(inputs: Path) -> None:
    """To curated traces, with real kernels, which die with the run."""
    twice, paid, most = kill_and_resume(inputs, inputs / "out", "curate", kills=30, delay_s=0.02, life_s=(0.5, 8.0))
    print(f"{twice} of {paid} calls paid twice in 30 kills, {most} under way at most")
    assert twice <= 30 * most
