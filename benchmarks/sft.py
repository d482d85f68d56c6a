"""How fast fine-tuning is beside the device's matmul ceiling and beside TRL as it comes; one GPU, Qwen3-4B's shape.

    python benchmarks/sft.py                       # the table, under 9 minutes on one H200
    python benchmarks/sft.py --rows ours,trl --json speed.json
    python benchmarks/sft.py --model small --rows losses      # the same losses as padded SDPA?

Random weights, documents of random tokens with lognormal lengths (mean about 3.9k, at most 16k), half of the tokens
trained, NEFTune on, 8 documents a step. All rows but the last keep float32 weights and Adam moments and compute in bf16
autocast. Each row runs in a process of its own. FLOPs are 6 a parameter and token plus causal attention, the same for
all rows; recomputation is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "vocab_size": 151_936},
    "small": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 6, "vocab_size": 32_768},
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 512},
}
HEADS = {"qwen3-4b": (32, 8, 128), "small": (16, 8, 128), "tiny": (4, 2, 32)}
MEAN_TOKENS, SIGMA, LONGEST = 3900, 0.8, 16_384
DOCUMENTS = 8

ROWS = {
    "ours": ("packed 16k, varlen, compiled layers", 4, 10),
    "trl": ("TRL as it comes: SDPA, padded, batch 1, checkpointing", 2, 4),
    "trl-packed": ("TRL's bfd packing 16k on SDPA", 1, 3),
    "liger": ("packed 16k, varlen, liger's layer kernels", 3, 8),
    "checkpointing": ("packed 16k, varlen, compiled, all recomputed", 4, 6),
    "liger-compiled": ("packed 16k, varlen, liger's layer kernels compiled", 4, 8),
    "pure-bf16": ("weights and Adam moments in bf16: not what trains", 4, 8),
}
"""What it is, steps before the clock runs, steps measured."""
DEFAULT_ROWS = ("ours", "trl", "trl-packed", "losses", "liger", "pure-bf16")


def model_config(shape: str) -> Any:
    from transformers import Qwen3Config

    heads, kv_heads, head_dim = HEADS[shape]
    return Qwen3Config(
        **SHAPES[shape],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=True,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )


def make_documents(count: int, shape: str, longest: int = LONGEST, mean: float = MEAN_TOKENS, seed: int = 0) -> Any:
    """Documents whose tokens repeat with a period of their own, so that there is something to learn."""
    from sft.documents import Documents

    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, count).clip(64, longest).astype(int)
    vocab = min(SHAPES[shape]["vocab_size"], 4096)
    documents = []
    for length in lengths:
        pattern = rng.integers(2, vocab, int(rng.integers(20, 200)))
        ids = np.resize(pattern, length).astype(np.int32)
        documents.append((ids, (np.arange(length) // 128) % 2 == 1))
    return Documents.of(documents)


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


class Clock:
    """Times steps from the end of the last one that warms up."""

    def __init__(self, warm: int) -> None:
        self.warm = warm
        self.ends_s: list[float] = []
        self.losses: list[float] = []

    def callback(self) -> Any:
        """For a trainer."""
        import torch
        from transformers import TrainerCallback

        clock = self

        class Callback(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                clock.ends_s.append(time.perf_counter())

            def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **kwargs: Any) -> None:
                if "loss" in logs:
                    clock.losses.append(logs["loss"])

        return Callback()


def run_ours(row: str, shape: str, warm: int, steps: int, **fields: Any) -> dict[str, Any]:
    """Through the code of `sft/train.py`."""
    import torch
    from transformers import set_seed

    from sft import speed
    from sft.recipe import read_recipe
    from sft.train import load_model, trl_arguments
    from sft.trainer import TraceTrainer

    set_seed(0)
    documents = fields.pop("documents", None) or make_documents(DOCUMENTS * (warm + steps), shape)
    recipe = read_recipe(
        None, {"from_scratch": True, "output": tempfile.mkdtemp(), "max_steps": warm + steps, "trackers": [], **fields}
    )
    if row in ("liger", "liger-compiled"):
        recipe.compile = row == "liger-compiled"
    if row == "checkpointing":
        recipe.keep_tokens = 0
    config = model_config(shape)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = speed.choose(recipe, config, device)
    if row == "liger-compiled":
        chosen = chosen._replace(liger=True)
    if row == "pure-bf16":
        chosen = chosen._replace(bf16=False)
    print(row, speed.say(chosen), flush=True)
    model = load_model(recipe, config, chosen.attention)
    if row == "pure-bf16":
        model = model.to(torch.bfloat16)
    speed.apply(chosen, model)
    clock = Clock(warm)
    arguments = trl_arguments(recipe, chosen, has_eval=False)
    arguments.save_strategy = "no"
    trainer = TraceTrainer(
        model, arguments, make_tokenizer(), recipe, chosen, documents, None, callbacks=[clock.callback()]
    )
    tokens = measured(trainer.get_train_dataloader(), warm, steps)
    trainer.train()
    return result(clock, tokens, trainer._meter._parameters, config)


def measured(steps_of: Any, warm: int, steps: int) -> list[tuple[int, float]]:
    """Tokens and squared lengths of each step that is timed."""
    found = [step for _, step in zip(range(warm + steps), steps_of, strict=False)][warm:]
    return [(step.tokens, step.squares) for step in found]


def run_trl(row: str, shape: str, warm: int, steps: int) -> dict[str, Any]:
    """SFTTrainer on the same documents, with its own data path."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, set_seed
    from trl import SFTConfig, SFTTrainer

    from sft.meter import matmul_parameters

    set_seed(0)
    documents = make_documents(DOCUMENTS * (warm + steps) * 2, shape)
    pairs = [documents[index] for index in range(len(documents))]
    rows = {
        "input_ids": [ids.tolist() for ids, _ in pairs],
        "labels": [np.where(mask, ids, -100).tolist() for ids, mask in pairs],
    }
    packs = row == "trl-packed"
    config = model_config(shape)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    clock = Clock(warm)
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=warm + steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2 if packs else DOCUMENTS,
        learning_rate=5e-6,
        max_length=LONGEST,
        packing=packs,
        neftune_noise_alpha=7,
        bf16=torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_dict(rows), processing_class=make_tokenizer())
    counts: list[tuple[int, float]] = []
    compute_loss = trainer.compute_loss

    def counting(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if "position_ids" in inputs:
            starts = torch.nonzero(inputs["position_ids"][0] == 0).flatten().tolist()
            lengths = np.diff([*starts, inputs["position_ids"].shape[1]])
        else:
            lengths = np.array([inputs["input_ids"].shape[1]])
        counts.append((int(lengths.sum()), float((lengths.astype(float) ** 2).sum())))
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = counting
    trainer.add_callback(clock.callback())
    trainer.train()
    per_step = np.array(counts).reshape(-1, arguments.gradient_accumulation_steps, 2).sum(1)
    timed = [(int(tokens), float(squares)) for tokens, squares in per_step[warm:]]
    return result(clock, timed, matmul_parameters(model, config), config)


def result(clock: Clock, steps: list[tuple[int, float]], parameters: int, config: Any) -> dict[str, Any]:
    """Over all steps that are timed; those of each step are kept, to see whether they had settled."""
    import torch

    from sft.meter import step_flops

    seconds = np.diff(clock.ends_s[clock.warm - 1 :]).tolist()
    tokens, squares = sum(count for count, _ in steps), sum(square for _, square in steps)
    memory = torch.cuda.memory_stats() if torch.cuda.is_available() else {}
    return {
        "tokens_per_s": tokens / sum(seconds),
        "tflops": step_flops(config, parameters, tokens, squares) / sum(seconds) / 1e12,
        "median_step_tokens_per_s": float(np.median([count / s for (count, _), s in zip(steps, seconds, strict=True)])),
        "peak_gb": memory.get("allocated_bytes.all.peak", 0) / 1e9,
        "reserved_gb": memory.get("reserved_bytes.all.peak", 0) / 1e9,
        "allocation_retries": memory.get("num_alloc_retries", 0),
        "steps": [[count, round(s, 3)] for (count, _), s in zip(steps, seconds, strict=True)],
        "losses": clock.losses,
    }


def ceiling() -> dict[str, Any]:
    """TFLOP/s of an 8192-cubed bf16 product of random numbers."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(5):
        a @ b
    wait()
    began_s = time.perf_counter()
    for _ in range(20):
        a @ b
    wait()
    return {"tflops": 20 * 2 * size**3 / (time.perf_counter() - began_s) / 1e12, "device": device_name()}


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def losses(steps: int, shape: str) -> dict[str, Any]:
    """Losses of the same steps, NEFTune off: packed and compiled, padded SDPA, and that one with compiled layers.

    The third tells how far rounding alone takes two equal runs apart.
    """
    common: dict[str, Any] = {"neftune_alpha": 0, "learning_rate": 3e-4, "documents_per_step": DOCUMENTS}
    runs = {}
    for name, fields in {
        "ours": {},
        "padded": {"speed": "plain"},
        "padded-compiled": {"speed": "plain", "compile": True},
    }.items():
        documents = make_documents(DOCUMENTS * steps, shape, longest=4096, mean=1000)
        done = run_ours("ours", shape, 1, steps - 1, documents=documents, **common, **fields)
        runs[name] = done["losses"]
    apart = {
        name: float(np.abs(np.array(runs[name]) - np.array(runs["padded"])).max())
        for name in ("ours", "padded-compiled")
    }
    return {"losses": runs, "largest_difference": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(DEFAULT_ROWS), help=f"of {', '.join([*ROWS, 'losses'])}")
    parser.add_argument("--model", default="qwen3-4b", choices=SHAPES)
    parser.add_argument("--losses-model", default="small", choices=SHAPES)
    parser.add_argument("--losses-steps", type=int, default=50)
    parser.add_argument("--budget-s", type=float, default=530, help="no row is begun that would end after it")
    parser.add_argument("--row-s", type=float, default=170, help="a row that takes longer is ended")
    parser.add_argument("--json", type=Path, default=None, help="write all figures here, after each row")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        given.result.write_text(json.dumps(run_one(given)))
        return
    began_s = time.monotonic()
    figures: dict[str, Any] = {}
    for row in ["ceiling", *given.rows.split(",")]:
        left_s = given.budget_s - (time.monotonic() - began_s)
        figures[row] = in_process(row, given, min(left_s, given.row_s))
        print(f"[{time.monotonic() - began_s:.0f} s] {row}: {summary(figures[row])}", flush=True)
        if given.json:
            given.json.write_text(json.dumps(figures, indent=1))
    print(table(figures, given.model))


def run_one(given: argparse.Namespace) -> dict[str, Any]:
    if given.one == "ceiling":
        return ceiling()
    if given.one == "losses":
        return losses(given.losses_steps, given.losses_model)
    _, warm, steps = ROWS[given.one]
    return (run_trl if given.one.startswith("trl") else run_ours)(given.one, given.model, warm, steps)


def in_process(row: str, given: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """A row's figures, or why there are none: running out of memory ends that row alone."""
    if limit_s < 30:
        return {"error": "no time left"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--one", row, "--result", str(path), "--model", given.model]
        command += ["--losses-model", given.losses_model, "--losses-steps", str(given.losses_steps)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s, text=True)
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
            return {
                "error": f"over {limit_s:.0f} s",
                "output": (said if isinstance(said, str) else said.decode())[-3000:],
            }
        if done.returncode or not path.exists():
            lines = done.stdout.strip().splitlines() or [""]
            return {"error": lines[-1][:300], "output": done.stdout[-3000:]}
        figures: dict[str, Any] = json.loads(path.read_text())
        return figures


def summary(figures: dict[str, Any]) -> str:
    if "error" in figures:
        return f"{figures['error']}\n{figures.get('output', '')}"
    kept = {name: value for name, value in figures.items() if name not in ("losses", "steps")}
    return ", ".join(
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in kept.items()
    )


def table(figures: dict[str, Any], shape: str) -> str:
    top = figures["ceiling"].get("tflops", float("nan"))
    base = figures.get("trl", {}).get("tokens_per_s", float("nan"))
    lines = [
        f"{shape} on {figures['ceiling'].get('device')}; bf16 matmul ceiling {top:.0f} TFLOP/s",
        "| setting | tok/s | TFLOP/s | of ceiling | of TRL | peak GB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row, (what, _, _) in ROWS.items():
        got = figures.get(row)
        if got is None:
            continue
        if "error" in got:
            lines.append(f"| {what} | {got['error'][:60]} | | | | |")
            continue
        lines.append(
            f"| {what} | {got['tokens_per_s']:,.0f} | {got['tflops']:.0f} | {got['tflops'] / top:.0%} "
            f"| {got['tokens_per_s'] / base:.2f}x | {got['peak_gb']:.0f} |"
        )
    if "largest_difference" in figures.get("losses", {}):
        lines.append(f"largest difference to padded SDPA's losses: {figures['losses']['largest_difference']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
