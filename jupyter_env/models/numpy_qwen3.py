"""Qwen3 in numpy, for models of a few million weights: no torch, no compiler, a few milliseconds a token.

Covered: dense Qwen3 in float16 or float32 safetensors, any number of sequences in a step, each with a cache of its
keys and values. Not covered: quantised weights, other architectures.

At this size a step is bound by the number of numpy calls and by reading the weights, not by arithmetic: weights that
are used together are stored together, and the tokens of all sequences go through them as one matrix.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class Cache:
    """Keys and values of the tokens so far, of every layer."""

    def __init__(self, layers: int, heads: int, room: int, width: int) -> None:
        self.keys = np.empty((layers, heads, width, room), np.float32)  # so lies what is multiplied with a query
        self.values = np.empty((layers, heads, room, width), np.float32)
        self.tokens: list[int] = []

    def copy_prefix(self, other: Cache, length: int) -> None:
        """Take over the first tokens of another one."""
        self.keys[..., :length] = other.keys[..., :length]
        self.values[:, :, :length] = other.values[:, :, :length]
        self.tokens = other.tokens[:length]


class NumpyQwen3:
    """The network of a folder in transformers' form (`config.json`, `model.safetensors`).

    Raises:
        OSError: a file is missing.
        ValueError: another architecture.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("architectures") != ["Qwen3ForCausalLM"]:
            raise ValueError(f"{folder} holds {config.get('architectures')}, expected ['Qwen3ForCausalLM']")
        self.room: int = config["max_position_embeddings"]
        self._heads: int = config["num_attention_heads"]
        self._kv_heads: int = config["num_key_value_heads"]
        self._width: int = config["head_dim"]
        self._epsilon: float = config["rms_norm_eps"]
        weights = {name: value.astype(np.float32) for name, value in load_file(folder / "model.safetensors").items()}
        self._embeddings = weights["model.embed_tokens.weight"]
        self._head = weights.get("lm_head.weight", self._embeddings)
        self._norm = weights["model.norm.weight"]
        self._layers = [_layer(weights, f"model.layers.{index}.") for index in range(config["num_hidden_layers"])]
        self._cosines, self._sines = _rotation(_theta(config), self._width, self.room)

    def cache(self) -> Cache:
        """An empty cache."""
        return Cache(len(self._layers), self._kv_heads, self.room, self._width)

    def logits(self, tokens: list[int], cache: Cache) -> Array:
        """Read more tokens of one sequence; scores of what comes after each of them, of shape (tokens, vocabulary).

        Raises:
            ValueError: the cache has no room for them.
        """
        return self._hidden([(tokens, cache)]) @ self._head.T

    def next_logits(self, sequences: list[tuple[list[int], Cache]]) -> Array:
        """Read more tokens of each sequence, one or more; scores of what comes after the last of each.

        Returns:
            Of shape (sequences, vocabulary).
        """
        last = np.cumsum([len(tokens) for tokens, _ in sequences]) - 1
        scores: Array = self._hidden(sequences)[last] @ self._head.T
        return scores

    def _hidden(self, sequences: list[tuple[list[int], Cache]]) -> Array:
        """The last layer's output for the new tokens of all sequences, one after the other."""
        places: list[tuple[int, int, Cache]] = []
        for tokens, cache in sequences:
            start, end = len(cache.tokens), len(cache.tokens) + len(tokens)
            if end > self.room:
                raise ValueError(f"{end} tokens exceed the model's {self.room}")
            places.append((start, end, cache))
        hidden = self._embeddings[[token for tokens, _ in sequences for token in tokens]]
        positions = np.concatenate([np.arange(start, end) for start, end, _ in places])
        cosines, sines = self._cosines[positions], self._sines[positions]
        for index, layer in enumerate(self._layers):
            hidden = hidden + self._attend(hidden, layer, index, places, cosines, sines) @ layer["out"]
            gate, up = np.split(_normed(hidden, layer["between"], self._epsilon) @ layer["gate_up"], 2, axis=-1)
            hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ layer["down"]
        for tokens, cache in sequences:
            cache.tokens += tokens
        return _normed(hidden, self._norm, self._epsilon)

    def _attend(
        self,
        hidden: Array,
        layer: dict[str, Array],
        index: int,
        places: list[tuple[int, int, Cache]],
        cosines: Array,
        sines: Array,
    ) -> Array:
        """Causal attention of each sequence's new tokens to all of its own, of shape (tokens, heads * width)."""
        count = len(hidden)
        merged = _normed(hidden, layer["before"], self._epsilon) @ layer["qkv"]
        queries, keys, values = np.split(
            merged.reshape(count, -1, self._width).transpose(1, 0, 2), (self._heads, self._heads + self._kv_heads)
        )
        queries = _rotated(_normed(queries, layer["q_norm"], self._epsilon), cosines, sines)
        keys = _rotated(_normed(keys, layer["k_norm"], self._epsilon), cosines, sines)
        mixed = np.empty((self._heads, count, self._width), np.float32)
        first = 0
        for start, end, cache in places:
            last = first + end - start
            cache.keys[index, :, :, start:end] = keys[:, first:last].transpose(0, 2, 1)
            cache.values[index, :, start:end] = values[:, first:last]
            mixed[:, first:last] = self._mix(queries[:, first:last], cache, index, start, end)
            first = last
        return mixed.transpose(1, 0, 2).reshape(count, -1)

    def _mix(self, queries: Array, cache: Cache, index: int, start: int, end: int) -> Array:
        """Of one sequence; the heads of a group share keys and values."""
        grouped = queries.reshape(self._kv_heads, -1, self._width)
        scores: Array = grouped @ cache.keys[index, :, :, :end]
        scores *= self._width**-0.5
        if end - start > 1:
            unseen = np.triu(np.full((end - start, end), -np.inf, np.float32), start + 1)
            scores += np.tile(unseen, (self._heads // self._kv_heads, 1))
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed: Array = (scores @ cache.values[index, :, :end]).reshape(self._heads, end - start, self._width)
        return mixed


def _layer(weights: dict[str, Array], prefix: str) -> dict[str, Array]:
    """The weights of a layer, those of one multiplication side by side."""

    def joined(*names: str) -> Array:
        return np.ascontiguousarray(np.concatenate([weights[f"{prefix}{name}.weight"] for name in names]).T)

    return {
        "before": weights[f"{prefix}input_layernorm.weight"],
        "between": weights[f"{prefix}post_attention_layernorm.weight"],
        "qkv": joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "q_norm": weights[f"{prefix}self_attn.q_norm.weight"],
        "k_norm": weights[f"{prefix}self_attn.k_norm.weight"],
        "out": joined("self_attn.o_proj"),
        "gate_up": joined("mlp.gate_proj", "mlp.up_proj"),
        "down": joined("mlp.down_proj"),
    }


def _theta(config: dict[str, Any]) -> float:
    """The base of the rotary positions, where transformers 5 and 4 write it."""
    return float((config.get("rope_parameters") or config)["rope_theta"])


def _rotation(theta: float, width: int, room: int) -> tuple[Array, Array]:
    angles = np.outer(np.arange(room), theta ** -(np.arange(0, width, 2) / width))
    doubled = np.concatenate([angles, angles], axis=-1)
    return np.cos(doubled).astype(np.float32), np.sin(doubled).astype(np.float32)


def _rotated(heads: Array, cosines: Array, sines: Array) -> Array:
    half = heads.shape[-1] // 2
    turned: Array = np.concatenate([-heads[..., half:], heads[..., :half]], axis=-1)
    rotated: Array = heads * cosines + turned * sines
    return rotated


def _normed(values: Array, scale: Array, epsilon: float) -> Array:
    """Root mean square norm."""
    size: Any = np.sqrt(np.mean(values * values, axis=-1, keepdims=True) + epsilon)
    normed: Array = values / size * scale
    return normed
