"""What a model is, and the text it sees: the one rendering that rollouts, SFT, GRPO and serving share."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

import msgspec

from jupyter_env.action import Message


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What model calls have used; a server that reports nothing leaves zeros."""

    requests: int = 0
    """Answered ones."""
    retries: int = 0
    """Requests sent again, for any reason."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt tokens, those that the server had in its prefix cache."""
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A model's turn."""

    message: Message
    """Role assistant; reasoning, where there is some, is `reasoning_content` or stands before `</think>`."""
    finish_reason: str = "stop"
    """As OpenAI names them: stop, tool_calls, length (cut at the token limit), content_filter."""
    usage: Usage = Usage()


class Model(Protocol):
    """One turn: the conversation and the tools in, the assistant's message out.

    Raises:
        ModelUnavailable: no answer, after the retries worth making. No fault of the agent.
        ContextOverflow: the conversation is too long for the model.
        ModelSetupError: it will never answer as it is set up (key, name, address).
    """

    def __call__(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], /) -> Awaitable[Reply]:
        """The next turn of this conversation."""


class ModelUnavailable(Exception):
    """The model gave no usable answer: a server that is down, overloaded or answers garbage."""


class ContextOverflow(Exception):
    """The conversation, with the room kept for an answer, is longer than the model's context."""


class ModelSetupError(Exception):
    """The model cannot be used as it was named: a wrong key, name or address, or a server without tool calls."""


_CALL_FORMAT = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_TOOLS_INTRO = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_CONTROL = re.compile(r"<(?=\|[A-Za-z0-9_]+\|>|/?(?:tool_call|tool_response|think|tools)>)")


def neutral(text: str) -> str:
    """The text with the model's control marks made harmless: `<|im_end|>` in a table must not end a turn.

    The `<` of a mark becomes `‹`. Done once, where foreign text enters a message (questions, cell outputs).
    """
    return _CONTROL.sub("‹", text)


def render(
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] = (),
    *,
    thinking: bool = True,
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation for the Qwen3 family.

    The same as `tokenizer.apply_chat_template` with TRL's training template for Qwen3, which keeps every think
    block, so that a longer conversation always begins with the text of the shorter one.

    Args:
        messages: roles system (first only), user, assistant and tool. An assistant's reasoning is its
            `reasoning_content`, or stands in its content before `</think>`.
        tools: as `tool_schemas` gives them.
        thinking: False closes the think block in the generation prompt (a non-thinking turn follows).
        add_generation_prompt: end with the header of the assistant's next turn.

    Raises:
        ValueError: a role that the template does not know.
    """
    parts = [_system(messages, tools)]
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "assistant":
            parts.append(f"<|im_start|>assistant\n{_assistant(message)}<|im_end|>\n")
        elif role == "tool":
            before = messages[index - 1]["role"] if index else None
            after = messages[index + 1]["role"] if index + 1 < len(messages) else None
            opening = "<|im_start|>user" if before != "tool" else ""
            closing = "<|im_end|>\n" if after != "tool" else ""
            parts.append(f"{opening}\n<tool_response>\n{_content(message)}\n</tool_response>{closing}")
        elif role == "user" or (role == "system" and index):
            parts.append(f"<|im_start|>{role}\n{_content(message)}<|im_end|>\n")
        elif role != "system":
            raise ValueError(f"message {index}: the roles are system, user, assistant and tool, got {role!r}")
    if add_generation_prompt:
        parts.append("<|im_start|>assistant\n" + ("" if thinking else "<think>\n\n</think>\n\n"))
    return "".join(parts)


def with_tools_as_text(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """The conversation for a server that knows of no tools: their description and the calls are texts in it.

    The texts are those of `render`; outputs come as the user's messages.
    """
    system = _system_text(messages, tools)
    sent: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for message in messages:
        if message["role"] == "assistant":
            content = _content(message)
            kept = {key: value for key, value in message.items() if key != "tool_calls"}
            sent.append({**kept, "content": content + _calls(message, after_text=bool(content))})
        elif message["role"] == "tool":
            sent.append({"role": "user", "content": f"<tool_response>\n{_content(message)}\n</tool_response>"})
        elif message["role"] != "system":
            sent.append(message)
    return sent


def _system(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
    text = _system_text(messages, tools)
    return "" if text is None else f"<|im_start|>system\n{text}<|im_end|>\n"


def _system_text(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str | None:
    first = _content(messages[0]) if messages and messages[0]["role"] == "system" else None
    if not tools:
        return first
    signatures = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
    prefix = "" if first is None else f"{first}\n\n"
    return f"{prefix}{_TOOLS_INTRO}{signatures}{_CALL_FORMAT}"


def _assistant(message: Message) -> str:
    content, reasoning = _content(message), message.get("reasoning_content")
    if not isinstance(reasoning, str):
        reasoning = ""
        if "</think>" in content:
            reasoning = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
            content = content.split("</think>")[-1].lstrip("\n")
    text = "<think>\n" + reasoning.strip("\n") + "\n</think>\n\n" + content.lstrip("\n")
    return text + _calls(message, after_text=bool(content))


def _calls(message: Message, after_text: bool) -> str:
    """The calls in the hermes form."""
    text = ""
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or call
        arguments = function["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        separator = "\n" if index or after_text else ""
        text += f'{separator}<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'
    return text


def _content(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""
