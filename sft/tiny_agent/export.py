"""Put a trained tiny agent where the package looks for it: half precision, in transformers' form.

python -m sft.tiny_agent.export runs/tiny-agent/sft jupyter_env/models/tiny_agent
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

LIMIT_BYTES = 12_000_000
"""Of the whole folder: it travels with every install."""


def export(trained: Path, target: Path) -> int:
    """Write the model and its tokenizer; the bytes of the folder.

    Raises:
        OSError: the trained model lacks a file.
        ValueError: it is too large to be shipped.
    """
    target.mkdir(parents=True, exist_ok=True)
    weights = load_file(trained / "model.safetensors")
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    if config["tie_word_embeddings"]:
        weights.pop("lm_head.weight", None)
    halves = {name: value.astype(np.float16) for name, value in sorted(weights.items())}
    save_file(halves, target / "model.safetensors", metadata={"format": "pt"})
    config["dtype"] = "float16"
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (target / name).write_bytes((trained / name).read_bytes())
    size = sum(path.stat().st_size for path in target.iterdir() if path.is_file())
    if size > LIMIT_BYTES:
        raise ValueError(f"{target} has {size:,} bytes, more than {LIMIT_BYTES:,}; make the model smaller")
    return size


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="a checkpoint of sft/train.py")
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    print(f"{options.target}: {export(options.trained, options.target):,} bytes")


if __name__ == "__main__":
    main()
