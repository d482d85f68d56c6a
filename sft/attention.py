"""Attention over packed rows on plain torch: `varlen_attn` sees where documents begin, so that none sees another.

Registered with transformers under the name "varlen". It needs a CUDA device and half precision; elsewhere SDPA does
the same with a mask that transformers makes from the positions, in memory that grows with the square of a row.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

NAME = "varlen"
# torch 2.11's kernel takes grouped heads without being told; later ones want to be told.
_GROUPED = {"enable_gqa": True} if varlen_attn and "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def can_use(device: torch.device) -> bool:
    """Whether rows can be packed without a mask on this device."""
    return varlen_attn is not None and device.type == "cuda"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    Args:
        query: (1, heads, tokens, head_dim); key and value may have fewer heads.
        cu_seq_lens_q: int32 (documents + 1), where documents begin, and the end.
        max_length_q: a bound of their lengths.

    Returns:
        (1, tokens, heads, head_dim) in half precision, and None for the weights.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError("varlen attention needs cu_seq_lens_q and max_length_q, as sft.layout makes them")
    half = value.dtype if value.dtype != torch.float32 else torch.bfloat16
    # The norms of query and key leave them in float32 where weights are float32.
    query, key, value = (part.transpose(1, 2).squeeze(0).to(half) for part in (query, key, value))
    out = varlen_attn(
        query,
        key,
        value,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1, 0),  # causal
        **_GROUPED,
    )
    return out.unsqueeze(0), None


def register() -> None:
    """Make "varlen" an attention implementation of transformers; no mask is made for it."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
