"""The backends over one interface: transformers twice, and vLLM's as TRL calls it."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from jupyter_env.chat import ModelUnavailable
from rl.generation import BatchGenerator, Request, by_continuous_batching, by_transformers, by_vllm


@pytest.mark.serve
def test_transformers_both_ways_of_generating_agree(tiny: Path) -> None:
    """Prompts of unlike lengths, whose turns end at unlike times, come back in their order."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    texts = ["Hi", "What is 6 times 7?", "What is it that 6 times 7 is, and what not?", "Hi"]
    prompts = [tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n").input_ids for text in texts]
    plain, none = by_transformers(model, end, pad, temperature=0.0)(prompts, 24)
    batched, _ = by_continuous_batching(model, end, pad, temperature=0.0)(prompts, 24)
    assert none is None

    def until_end(turn: list[int]) -> list[int]:
        return turn[: turn.index(end) + 1] if end in turn else turn

    assert [until_end(turn) for turn in plain] == [until_end(turn) for turn in batched]
    assert plain[0] == plain[3] and len({tuple(turn) for turn in plain}) > 1
    drawn, _ = by_transformers(model, end, pad, temperature=1.5)(prompts[:1] * 8, 24)
    assert len({tuple(turn) for turn in drawn}) > 1


class Vllm:
    """`trainer.vllm_generation`, as far as it is used."""

    def __init__(self) -> None:
        self.max_completion_length = 16_384
        self.asked: dict[str, Any] = {}

    def generate(self, **asked: Any) -> tuple[Any, Any, Any, Any]:
        self.asked = asked
        turns = [[5, 6, 2] for _ in asked["prompts"]]
        return asked["prompts"], turns, [[[-0.1], [-0.2], [None]] for _ in turns], None


def test_vllm_is_asked_for_turns_not_episodes() -> None:
    vllm = Vllm()
    generator = BatchGenerator(by_vllm(vllm), 2, turn_tokens=128, slots=2)
    for number in range(3):
        generator.submit(Request(number, [1, 1 + number]))
    generator.drop(1)
    [first, second] = generator.advance()
    assert vllm.max_completion_length == 128
    assert vllm.asked["prompts"] == [[1, 1], [1, 3]] and vllm.asked["num_generations"] == 1
    assert (first.number, second.number) == (0, 2) and first.ids == [5, 6, 2]
    assert first.logprobs is not None and first.logprobs[:2] == [-0.1, -0.2] and first.logprobs[2] != first.logprobs[2]


def test_a_backend_that_fails_is_unavailable() -> None:
    def generate(prompts: list[list[int]], max_tokens: int) -> Any:
        raise RuntimeError("CUDA out of memory")

    generator = BatchGenerator(generate, 2, turn_tokens=128, slots=2)
    generator.submit(Request(0, [1]))
    with pytest.raises(ModelUnavailable, match="RuntimeError: CUDA out of memory"):
        generator.advance()
