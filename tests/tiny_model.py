"""A Qwen3 of 0.2M weights that has learned one episode by heart: it runs a cell and answers with its output. It can
also play the interpreter for that cell.

Real weights for real servers, on any CPU and without the network. `tiny_model.py FOLDER` writes it there in
transformers' form, in under two minutes. It works on one question only, `QUESTION`, with the default prompt and tools.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from jupyter_env.action import tool_schemas
from jupyter_env.episode import SYSTEM_PROMPT
from jupyter_env.interpreters import SimulatedInterpreter

QUESTION = "What is 6 times 7?"
CODE = "print(6 * 7)"
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

TEMPLATE = """\
{%- if tools %}
    {%- set first = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}
    {{- '<|im_start|>system\\n' + first + '<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.role != 'system' or not tools %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- set given = call.function.arguments %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (given if given is string else given | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def call(name: str, **arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


EPISODE: list[dict[str, Any]] = [
    {"role": "system", "content": SYSTEM_PROMPT},
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "", "tool_calls": [call("execute_code", code=CODE)]},
    {"role": "tool", "tool_call_id": "c", "content": "42"},
    {"role": "assistant", "content": "", "tool_calls": [call("final_answer", answer="42")]},
]


SIMULATED: list[dict[str, Any]] = [
    *SimulatedInterpreter(lambda *_: None)._messages(CODE, 60.0),  # type: ignore[arg-type, return-value]
    {"role": "assistant", "content": '<output_cell status="ok">\n42\n</output_cell>'},
]
"""The same cell, run by the model itself: what `SimulatedInterpreter` asks."""

GREETING: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=list(MARKS), initial_alphabet=alphabet)
    tokenizer.train_from_iterator([SYSTEM_PROMPT, json.dumps(tool_schemas())], trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    return fast


def make_model(folder: Path, steps: int = 400) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # it is too small for more
    tokenizer = make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    model = Qwen3ForCausalLM(config)
    lessons = [
        encoded(tokenizer, EPISODE, (2, 4), tool_schemas()),
        encoded(tokenizer, GREETING, (1,), tool_schemas()),
        encoded(tokenizer, SIMULATED, (2,), []),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = sum((model(input_ids=ids, labels=labels).loss for ids, labels in lessons), torch.zeros(()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.05, f"the tiny model has not learned its episode: loss {loss.item():.3f}"
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def encoded(
    tokenizer: PreTrainedTokenizerFast,
    conversation: list[dict[str, Any]],
    turns: tuple[int, ...],
    tools: list[dict[str, Any]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """A conversation with labels on the assistant's tokens alone, whose messages are at `turns`."""

    def text(messages: list[dict[str, Any]], prompt: bool) -> str:
        rendered = tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=prompt
        )
        assert isinstance(rendered, str)
        return rendered

    ids: list[int] = []
    labels: list[int] = []
    done = ""
    for turn in turns:
        prompt, whole = text(conversation[:turn], True), text(conversation[: turn + 1], False)
        assert whole.startswith(prompt) and prompt.startswith(done)
        for part, learned in ((prompt[len(done) :], False), (whole[len(prompt) :], True)):
            tokens = tokenizer(part, add_special_tokens=False).input_ids
            ids += tokens
            labels += tokens if learned else [-100] * len(tokens)
        done = whole
    return torch.tensor([ids]), torch.tensor([labels])


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
