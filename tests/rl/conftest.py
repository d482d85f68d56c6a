"""The tests of reinforcement learning need torch, transformers and trl (extra `train`), and skip without them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rl.template import Template

ROOT = Path(__file__).parents[2]

collect_ignore_glob: list[str] = []
try:
    import torch
    import trl  # noqa: F401
except ImportError:
    collect_ignore_glob = ["test_*.py"]
else:
    torch.set_num_threads(1)  # the models are too small for more, and other tests run beside


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A tiny model that has learned one episode by heart (`tests/tiny_model.py`); made once for all test processes."""
    from filelock import FileLock

    home = tmp_path_factory.getbasetemp()
    home = home if worker_id == "master" else home.parent
    folder = home / "tiny-model"
    with FileLock(home / "tiny-model.lock"):
        if not (folder / "tokenizer.json").exists():
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            script = str(ROOT / "tests" / "tiny_model.py")
            subprocess.run([sys.executable, script, str(folder)], check=True, env=environment)
    return folder


@pytest.fixture(scope="session")
def template() -> "Template":
    """Of the tiny model."""
    from tiny_model import make_tokenizer

    from jupyter_env.action import tool_schemas
    from rl.template import Template

    return Template(make_tokenizer(), tool_schemas())
