"""How fast a run is and how much of the hardware it uses."""

from __future__ import annotations

import re
from time import perf_counter

import torch
from transformers import PretrainedConfig

from sft.layout import Step

PEAK_TFLOPS = {r"H200|H100|H800": 989.0, r"A100|A800": 312.0, r"B200": 2250.0, r"L40S": 362.0, r"4090": 165.0}
"""Dense bf16 matrix products, by the makers' data sheets."""


def peak_flops(device: torch.device) -> float | None:
    """Of the device in half precision, floating-point operations a second; None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for pattern, tflops in PEAK_TFLOPS.items() if re.search(pattern, name)), None)


def step_flops(config: PretrainedConfig, parameters: int, tokens: int, squares: float) -> float:
    """The work of a forward and a backward pass, recomputation not counted.

    6 operations a parameter and token (the embedding counts once, as the head), and causal attention: 6 times the
    width of all heads for each layer and pair of tokens of a document that see each other.

    Args:
        parameters: with tied embeddings counted once.
        tokens: of all documents.
        squares: sum of the squared lengths of the documents.
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * head_dim
    return 6.0 * parameters * tokens + 6.0 * config.num_hidden_layers * width * squares


def matmul_parameters(model: torch.nn.Module, config: PretrainedConfig) -> int:
    """Parameters that a token is multiplied with: all, less an embedding that is not the head too."""
    count = sum(getattr(part, "ds_numel", part.numel()) for part in model.parameters())
    return count if config.tie_word_embeddings else count - config.vocab_size * config.hidden_size


class Meter:
    """Counts steps between two logs.

    Args:
        flops_of: (tokens, squares) to floating-point operations.
        devices: processes that share the work.
        peak: of one device, operations a second; None leaves `mfu` out.
    """

    def __init__(self, config: PretrainedConfig, parameters: int, devices: int, peak: float | None) -> None:
        self._config, self._parameters, self._devices, self._peak = config, parameters, devices, peak
        self.paused_s = 0.0
        self._reset()

    def _reset(self) -> None:
        self._began_s, self.paused_s = perf_counter(), 0.0
        self._tokens = self._trained = self._documents = 0
        self._flops = 0.0

    def count(self, step: Step) -> float:
        """Count a step; its floating-point operations, over all devices."""
        flops = step_flops(self._config, self._parameters, step.tokens, step.squares)
        self._tokens += step.tokens
        self._trained += step.trained
        self._documents += step.documents
        self._flops += flops
        return flops

    def read(self) -> dict[str, float]:
        """Since the last reading, without the time of evaluations and checkpoints. Call it when the device is done."""
        passed_s = perf_counter() - self._began_s - self.paused_s
        tokens = max(self._tokens, 1)
        reading = {
            "tokens_per_s": self._tokens / passed_s,
            "trained_share": self._trained / tokens,
            "documents": float(self._documents),
        }
        if self._peak is not None:
            reading["tflops_per_gpu"] = self._flops / passed_s / self._devices / 1e12
            reading["mfu"] = self._flops / passed_s / self._devices / self._peak
        self._reset()
        return reading
