"""Generators over the weights that are being trained, as a recipe names them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

from jupyter_env.chat import ModelSetupError
from rl.decoder import Decoder
from rl.generation import (
    BatchGenerator,
    Generate,
    Generator,
    by_continuous_batching,
    by_transformers,
    by_vllm,
    together,
)
from rl.recipe import Recipe
from rl.template import Template

VLLM_VERSIONS = ((0, 22), (0, 31))
"""Of vLLM, those that TRL 1.16 knows."""


class Engine:
    """Opens generators for a trainer's model.

    Args:
        recipe: names the generator and its limits.
        template: of the model.
        in_step: whether processes must generate together; see `Runner.run`.
    """

    def __init__(self, recipe: Recipe, template: Template, *, in_step: bool = False) -> None:
        self._recipe, self._template, self._in_step = recipe, template, in_step
        self._decoder: Decoder | None = None

    def open(self, trainer: Any, temperature: float | None = None) -> Generator:
        """A generator over the present weights.

        Args:
            trainer: TRL's.
            temperature: default: the recipe's; 0 is greedy.
        """
        temperature = self._recipe.temperature if temperature is None else temperature
        model = trainer.accelerator.unwrap_model(trainer.model)
        tokens, end = self._recipe.tokens, self._template.end
        if self._recipe.generator == "decoder":
            if self._decoder is None:
                self._decoder = Decoder(
                    model, end, slots=self._recipe.slots, context=tokens.episode, turn_tokens=tokens.turn
                )
            self._decoder.sync()
            self._decoder.set_temperature(temperature)
            return self._decoder
        slots = self._recipe.slots
        if self._recipe.generator == "vllm":
            slots = self._recipe.episodes
            generate = self._vllm(trainer, temperature)
        else:
            make = by_transformers if self._recipe.generator == "transformers" else by_continuous_batching
            pad = self._template.tokenizer.pad_token_id
            generate = _within(trainer.accelerator.autocast, make(model, end, pad, temperature=temperature))
        if self._in_step:
            generate = together(generate, count=lambda own: max(_gathered([own])))
        return BatchGenerator(
            generate, end, turn_tokens=tokens.turn, slots=slots, patience=1.0 if self._in_step else 0.5
        )

    def _vllm(self, trainer: Any, temperature: float) -> Generate:
        if trainer.state.global_step != trainer._last_loaded_step:  # TRL's own mark, kept true
            trainer.vllm_generation.sync_weights()
            trainer._last_loaded_step = trainer.state.global_step
        trainer.vllm_generation.temperature = temperature
        return by_vllm(trainer.vllm_generation)


def _gathered(items: list[Any]) -> list[Any]:
    from accelerate.utils import gather_object

    found: list[Any] = gather_object(items)
    return found


def any_process(own: bool) -> bool:
    """Whether the flag is set in any process; each must ask."""
    return any(_gathered([own]))


def gathered(items: list[bytes]) -> list[bytes]:
    """The items of all processes."""
    return _gathered(items)


def _within(context: Callable[[], Any], generate: Generate) -> Generate:
    def wrapped(prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[list[float]] | None]:
        with context():
            return generate(prompts, max_tokens)

    return wrapped


def check_vllm_server(url: str, timeout_s: float = 10.0) -> str:
    """The version of the vLLM server at this address.

    Raises:
        ModelSetupError: nothing answers there, or it is of a version that TRL does not know.
    """
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/version", timeout=timeout_s) as reply:
            version = str(json.loads(reply.read())["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelSetupError(
            f"no vLLM server answers at {url} ({error}); start it with `trl vllm-serve --model MODEL`, or set "
            "trl.vllm_mode=colocate"
        ) from None
    low, high = VLLM_VERSIONS
    try:
        found = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        found = (0, 0)
    if not low <= found <= high:
        raise ModelSetupError(
            f"the server at {url} is vLLM {version}; TRL knows {low[0]}.{low[1]} to {high[0]}.{high[1]}"
        )
    return version
