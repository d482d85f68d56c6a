"""The examples run and do what they say."""

import importlib.util
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
