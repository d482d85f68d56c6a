"""NEFTune (arXiv 2310.05914): uniform noise on the embeddings in training, scaled by each document's own length.

transformers scales it by the row's length instead, which packing multiplies and padding stretches: how documents lie
in rows would change what they are trained on.
"""

from __future__ import annotations

from typing import Any

import torch


class EmbeddingNoise:
    """Adds the noise to a model's embeddings while it trains.

    Args:
        embeddings: the module whose output is (rows, tokens, dim).
        alpha: the noise is uniform in +-alpha / sqrt(length * dim).

    Attributes:
        lengths: (rows, tokens), of each token's document; set before each forward pass.
    """

    def __init__(self, embeddings: torch.nn.Module, alpha: float) -> None:
        self.alpha = alpha
        self.lengths: torch.Tensor | None = None
        self._handle = embeddings.register_forward_hook(self._add)

    def _add(self, module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        if self.lengths is None or self.lengths.shape != output.shape[:2]:
            raise ValueError("the embeddings' noise has no lengths for these rows")
        bounds = (self.alpha / (self.lengths * output.shape[-1]).sqrt()).to(output.dtype)
        return output + torch.empty_like(output).uniform_(-1, 1) * bounds[..., None]

    def remove(self) -> None:
        """No more noise."""
        self._handle.remove()
