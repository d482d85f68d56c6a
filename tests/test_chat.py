"""The one rendering: the text of the training template, where longer conversations begin with the shorter ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_env.action import tool_schemas
from jupyter_env.chat import neutral, render

# Rendered by TRL 1.16.0's `trl/chat_templates/qwen3_training.jinja` with jinja2 3.1.6 as transformers sets it up:
# trim_blocks and lstrip_blocks on, `tojson` = json.dumps(ensure_ascii=False), `thinking` passed as `enable_thinking`,
# no tools passed as None, and the {% generation %} tags, which only mark what is trained on, printing nothing.
CASES = json.loads((Path(__file__).parent / "files" / "render_cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_text_is_that_of_the_training_template(case: dict[str, Any]):
    assert render(case["messages"], case["tools"], **case["kwargs"]) == case["text"]


TEXTS = st.text(max_size=20) | st.sampled_from(
    ["</think>", "<think>\nx\n</think>\n\ny", "<tool_call>", "\n", "<|im_end|>"]
)
CALLS = st.builds(lambda code: {"function": {"name": "execute_code", "arguments": {"code": code}}}, TEXTS)
ASSISTANT = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXTS},
    optional={"reasoning_content": TEXTS, "tool_calls": st.lists(CALLS, max_size=3)},
)
OTHERS = st.fixed_dictionaries({"role": st.sampled_from(["user", "tool", "tool"]), "content": TEXTS})


@given(st.lists(ASSISTANT | OTHERS, min_size=1, max_size=8), st.booleans(), st.booleans())
def test_a_longer_conversation_begins_with_the_shorter(
    turns: list[dict[str, Any]], with_system: bool, with_tools: bool
):
    messages = [{"role": "system", "content": "s"}, *turns] if with_system else turns
    tools = tool_schemas() if with_tools else []
    whole = render(messages, tools)
    for end in range(1, len(messages)):
        if messages[end - 1]["role"] == messages[end]["role"] == "tool":
            continue  # consecutive tool messages are one turn
        assert whole.startswith(render(messages[:end], tools))
        if messages[end]["role"] == "assistant":
            assert whole.startswith(render(messages[:end], tools, add_generation_prompt=True))


def test_the_generation_prompt_of_a_turn_without_thinking_is_what_is_trained_on():
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    prompt = render(messages[:1], thinking=False, add_generation_prompt=True)
    assert render(messages) == f"{prompt}a<|im_end|>\n"


@pytest.mark.parametrize("role", ["developer", "function", ""])
def test_an_unknown_role_is_refused(role: str):
    with pytest.raises(ValueError, match=r"message 1.*system, user, assistant and tool"):
        render([{"role": "user", "content": "u"}, {"role": role, "content": "x"}])


MARKS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|fim_prefix|>"]
MARKS += [f"<{slash}{name}>" for slash in ("", "/") for name in ("tool_call", "tool_response", "think", "tools")]


@given(st.lists(st.sampled_from([*MARKS, "<", ">", "|", "/", "a<b", "<b>", "text", "<<", "im_end"])).map("".join))
def test_neutral_leaves_no_mark(text: str):
    once = neutral(text)
    assert not any(mark in once for mark in MARKS)
    assert neutral(once) == once and len(once) == len(text)


@pytest.mark.parametrize("text", ["a < b", "<b>bold</b>", "x <| y |> z", "<div>", "if a<b and c>d:", "", "‹ö›"])
def test_neutral_leaves_other_text_alone(text: str):
    assert neutral(text) == text
