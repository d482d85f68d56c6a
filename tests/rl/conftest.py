"""The tests of reinforcement learning need torch, transformers and trl (extra `train`), and skip without them."""

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
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learned one episode by heart (`tests/tiny_model.py`)."""
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run([sys.executable, str(ROOT / "tests" / "tiny_model.py"), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def template() -> "Template":
    """Of the tiny model."""
    from tiny_model import make_tokenizer

    from jupyter_env.action import tool_schemas
    from rl.template import Template

    return Template(make_tokenizer(), tool_schemas())
