"""Turns from a model, for a loop that has many conversations waiting: one interface over transformers and vLLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jupyter_env.chat import ModelUnavailable


class Request(NamedTuple):
    """A conversation that waits for its next turn."""

    number: int
    """Of the conversation: its later requests begin with the tokens of this one and of the reply to it."""
    ids: list[int]
    """All tokens so far. The model's context has room for a whole turn after them."""


class Sampled(NamedTuple):
    """A turn."""

    number: int
    ids: list[int]
    """With the end token, unless it was cut."""
    logprobs: list[float] | None
    """Of each token when it was sampled, at the sampling temperature; None where the backend keeps none."""


class Generator(Protocol):
    """Something that samples turns. Called from one thread, the trainer's."""

    slots: int
    """Conversations at a time."""
    patience: float
    """Share of the running conversations to wait for before `advance`: a batch that is generated whole pays for each
    one that comes too late; 0 where conversations join at any time."""

    def submit(self, request: Request) -> None:
        """Take a conversation; its turn is among what `advance` returns."""

    def advance(self) -> list[Sampled]:
        """Generate for a while; the turns that have ended, perhaps none.

        Raises:
            ModelUnavailable: nothing was generated, for a reason that is not the conversations'.
        """

    def drop(self, number: int) -> None:
        """The conversation has ended; nothing is kept of it."""


Generate = Callable[[list[list[int]], int], tuple[list[list[int]], list[list[float]] | None]]
"""From prompts and a limit of tokens for each turn to turns and perhaps their tokens' log-probabilities."""


class BatchGenerator:
    """A backend that takes a batch of prompts and returns when the last turn of it has ended.

    Two halves take turns: while one generates, the other's cells run.

    Args:
        generate: the backend.
        end: the token that ends a turn.
        turn_tokens: limit of a turn.
        slots: conversations in a batch, at most.
        patience: see `Generator`; 1.0 where processes must call the backend together.
    """

    def __init__(self, generate: Generate, end: int, *, turn_tokens: int, slots: int, patience: float = 0.5) -> None:
        self.slots, self.patience = slots, patience
        self._generate, self._end, self._turn_tokens = generate, end, turn_tokens
        self._waiting: list[Request] = []

    def submit(self, request: Request) -> None:
        """See `Generator`."""
        self._waiting.append(request)

    def advance(self) -> list[Sampled]:
        """See `Generator`: everything that waits."""
        batch, self._waiting = self._waiting[: self.slots], self._waiting[self.slots :]
        try:
            turns, logprobs = self._generate([request.ids for request in batch], self._turn_tokens)
        except Exception as error:
            raise ModelUnavailable(f"{type(error).__name__}: {error}") from error
        return [
            self._cut(request.number, turn, logprobs[place] if logprobs is not None else None)
            for place, (request, turn) in enumerate(zip(batch, turns, strict=True))
        ]

    def _cut(self, number: int, turn: list[int], logprobs: list[float] | None) -> Sampled:
        """A turn up to its end token: backends pad."""
        length = turn.index(self._end) + 1 if self._end in turn else len(turn)
        return Sampled(number, turn[:length], logprobs[:length] if logprobs is not None else None)

    def drop(self, number: int) -> None:
        """See `Generator`."""
        self._waiting = [request for request in self._waiting if request.number != number]


def by_transformers(model: Any, end: int, pad: int, *, temperature: float) -> Generate:
    """`model.generate` in one padded batch: for a first try, and for models that nothing else here knows."""
    import torch

    def generate(prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], None]:
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]).to(model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max_tokens,
                    eos_token_id=end,
                    pad_token_id=pad,
                    **sampling,
                )
        finally:
            model.train(was_training)
        return out[:, width:].tolist(), None

    return generate


def by_continuous_batching(model: Any, end: int, pad: int, *, temperature: float, memory: float = 0.5) -> Generate:
    """transformers' continuous batching: turns of unlike lengths do not wait for each other inside a batch.

    Args:
        memory: share of the free GPU memory for its cache; the rest is the update's.
    """
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    def generate(prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], None]:
        config = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=temperature > 0,
            temperature=temperature or None,
            eos_token_id=end,
            pad_token_id=pad,
            disable_compile=True,
        )
        batching = ContinuousBatchingConfig(max_memory_percent=memory)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                out = model.generate_batch(
                    prompts, generation_config=config, continuous_batching_config=batching, progress_bar=False
                )
        finally:
            model.train(was_training)
        return [output.generated_tokens for output in out.values()], None

    return generate


def by_vllm(vllm: Any) -> Generate:
    """vLLM as TRL runs it, `trainer.vllm_generation`: in this process (colocate) or as a server.

    Temperature and the other sampling settings are TRL's. Its one limit of tokens, the episode's, becomes a turn's.
    """

    def generate(prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[list[float]]]:
        vllm.max_completion_length = max_tokens
        _, turns, logprobs, _ = vllm.generate(prompts=prompts, images=None, num_generations=1)
        # For each token the most likely few; the first is the sampled one. vLLM can leave out a number.
        first = [[float("nan") if at[0] is None else at[0] for at in turn] for turn in logprobs]
        return [list(turn) for turn in turns], first

    return generate


def together(generate: Generate, *, count: Callable[[int], int]) -> Generate:
    """A backend that several processes must call at the same time, each with as many prompts.

    Args:
        count: from this process's number of prompts to the largest of all processes.
    """

    def padded(prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[list[float]] | None]:
        missing = count(len(prompts)) - len(prompts)
        filler = [prompts[0] if prompts else [0]] * missing
        turns, logprobs = generate(prompts + filler, max_tokens)
        return turns[: len(prompts)], logprobs[: len(prompts)] if logprobs is not None else None

    return padded
