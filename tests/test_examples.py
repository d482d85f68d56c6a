"""The examples run and do what they say."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from jupyter_env import TaskPool

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_reinforce_learns() -> None:
    spec = importlib.util.spec_from_file_location("reinforce", EXAMPLES / "reinforce.py")
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    curve = example.train(TaskPool.procedural(4, seed=0), updates=8, seed=0)
    assert sum(curve[-3:]) > sum(curve[:3])


def test_a_benchmark_of_ones_own_takes_less_than_60_lines(tmp_path: Path) -> None:
    path = EXAMPLES / "benchmark.py"
    assert len(path.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path / "shop")], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert "oracle: pass@1 100%, pass@2 100%" in done.stdout and "guess: pass@1 0%" in done.stdout
    assert len(TaskPool.load(tmp_path / "shop" / "tasks.jsonl")) == 3
