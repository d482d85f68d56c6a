"""The agent that ships with the package: a Qwen3 of five million weights that has learned this work and no other.

It answers generated questions about tables it has never seen, offline, on a CPU, without torch. How it was made and
what it can do is in docs/tiny-agent.md. Other models of this form load by their folder.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import threading
from collections.abc import Sequence
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

from jupyter_env.action import Message
from jupyter_env.chat import ContextOverflow, Model, ModelSetupError, Reply, Usage, render

try:
    import numpy as np
    from tokenizers import Tokenizer

    from jupyter_env.models.numpy_qwen3 import Array, Cache, NumpyQwen3
except ImportError as error:
    raise ModelSetupError(f"the embedded model needs {error.name}: pip install 'jupyter-env[agent]'") from None

NAME = "tiny-agent"
"""What rollouts call it."""
_FOLDER = Path(str(resource_files("jupyter_env").joinpath("models/tiny_agent")))
_KEPT_CACHES = 8
"""Conversations whose keys and values are kept: those in work on a small machine. Each holds up to 25 MB."""


class EmbeddedModel:
    """A `chat.Model`.

    Args:
        folder: of another model of this form; None for the one in the package.
        temperature: 0 is greedy. 0.2 is what its figures were measured at.
        top_p: draws from the likeliest tokens of this share.
        max_tokens: of one reply; its own are below 300.

    Raises:
        ModelSetupError: there is no such model.
    """

    def __init__(
        self, folder: Path | None = None, *, temperature: float = 0.2, top_p: float = 1.0, max_tokens: int = 512
    ) -> None:
        folder = folder or _FOLDER
        try:
            self._network = NumpyQwen3(folder)
            self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except (OSError, ValueError, KeyError) as error:
            raise ModelSetupError(f"{folder} holds no model that can run here: {error!r}") from None
        self._end: int | None = self._tokenizer.token_to_id("<|im_end|>")
        self._temperature, self._top_p, self._max_tokens = temperature, top_p, max_tokens
        self._caches: list[Cache] = []
        self._busy = threading.Lock()
        self._digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        self.name = NAME if folder == _FOLDER else str(folder)
        self.context_tokens: int | None = self._network.room
        self.usage = Usage()

    @property
    def identity(self) -> dict[str, Any]:
        """What can change its replies, for a run's configuration."""
        sampling = {"temperature": self._temperature, "top_p": self._top_p, "max_tokens": self._max_tokens}
        return {"model": self.name, "weights": self._digest, "sampling": sampling}

    async def __call__(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), /, *, seed: int = 0
    ) -> Reply:
        """One turn; the call in it is text, for the parsers of `action`.

        Raises:
            ContextOverflow: the conversation leaves no room for a reply.
        """
        text = render(messages, tools, thinking=False, add_generation_prompt=True)
        prompt: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if len(prompt) + self._max_tokens > self._network.room:
            raise ContextOverflow(
                f"{len(prompt)} tokens and {self._max_tokens} for a reply exceed {self._network.room}"
            )
        reply = await asyncio.to_thread(self._reply, prompt, seed)
        self.usage += reply.usage
        return reply

    def seeded(self, seed: int) -> Model:
        """This model with a seed: the same conversation then gets the same reply."""
        return functools.partial(self, seed=seed)

    async def check(self) -> None:
        """Nothing can be wrong that loading has not found."""

    async def close(self) -> None:
        """Nothing to stop."""

    def _reply(self, prompt: list[int], seed: int) -> Reply:
        with self._busy:  # the steps are short and hold the interpreter: two at a time would gain nothing
            cache, known = self._prepared(prompt)
            draw = np.random.default_rng([seed, len(prompt)])
            written: list[int] = []
            scores = self._network.next_logits(prompt[known:], cache)
            while True:
                token = self._drawn(scores, draw)
                if token == self._end or len(written) == self._max_tokens:
                    break
                written.append(token)
                scores = self._network.next_logits([token], cache)
        return Reply(
            message={"role": "assistant", "content": self._tokenizer.decode(written, skip_special_tokens=False)},
            finish_reason="stop" if token == self._end else "length",
            usage=Usage(requests=1, prompt_tokens=len(prompt), cached_tokens=known, completion_tokens=len(written) + 1),
        )

    def _prepared(self, prompt: list[int]) -> tuple[Cache, int]:
        """A cache that holds as much of the prompt as any conversation so far shares with it, and how much that is."""
        best, shared = None, 0
        for known in self._caches:
            length = _common(known.tokens, prompt[:-1])
            if length > shared:
                best, shared = known, length
        if best is not None and shared == len(best.tokens):  # its own conversation goes on
            self._caches.remove(best)
            cache = best
        else:
            full = len(self._caches) == _KEPT_CACHES
            cache = self._caches.pop(0) if full else self._network.cache()  # the one that has waited longest
            cache.copy_prefix(best or cache, shared)
        self._caches.append(cache)
        return cache, len(cache.tokens)

    def _drawn(self, scores: Array, draw: np.random.Generator) -> int:
        if self._temperature <= 0:
            return int(scores.argmax())
        chances = np.exp((scores - scores.max()).astype(np.float64) / self._temperature)
        chances /= chances.sum()
        if self._top_p < 1:
            order = np.argsort(-chances)
            before = np.cumsum(chances[order]) - chances[order]
            chances[order[before >= self._top_p]] = 0
            chances /= chances.sum()
        return int(draw.choice(len(chances), p=chances))


@functools.cache
def embedded_model() -> EmbeddedModel:
    """The model in the package with its own settings, loaded once."""
    return EmbeddedModel()


def _common(one: list[int], two: list[int]) -> int:
    """Tokens that both begin with."""
    length = min(len(one), len(two))
    return next((place for place in range(length) if one[place] != two[place]), length)
