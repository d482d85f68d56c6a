"""A trace as training data: the conversation that the student is to have, with its own prompt and tools."""

from __future__ import annotations

import copy
from typing import Any

import msgspec

from jupyter_env.action import Message, split_reasoning, tool_schemas
from jupyter_env.agent import agent_settings
from jupyter_env.chat import render
from jupyter_env.episode import EpisodeRecord
from jupyter_env.interpreters.output import OutputLimits, render_outputs


class Conversation(msgspec.Struct, frozen=True):
    """One variant of a trace."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    text: str


def conversation(record: EpisodeRecord, *, thinking: bool, limits: OutputLimits | None = None) -> Conversation:
    """The trace as messages and as text.

    The system message and the tools are those of evaluation, not the teacher's. What the teacher thought, or said in
    the comment that it was made to give, is the reasoning (thinking) or stands before the call (else).

    Args:
        limits: shorten outputs to these, by the function that the environment shortens with; None leaves them.
    """
    prompt = agent_settings("thinking" if thinking else "system").system_prompt
    shown = {cell.turn: cell for cell in record.cells}
    messages: list[Message] = [{"role": "system", "content": prompt}]
    turn = 0
    for message in record.messages[1:]:
        if message["role"] == "assistant":
            turn += 1
            messages.append(_assistant(message, thinking))
            continue
        new = dict(message)
        if limits is not None and turn in shown and message["role"] == "tool":
            before = shown[turn].text or "(no output)"
            after = render_outputs(shown[turn].outputs, limits) or "(no output)"
            new["content"] = str(message["content"]).replace(before, after, 1)
        messages.append(new)
    tools = tool_schemas()
    return Conversation(messages, tools, render(messages, tools, thinking=thinking))


def _assistant(message: Message, thinking: bool) -> Message:
    before, content = split_reasoning(str(message.get("content") or ""))
    calls = copy.deepcopy(message.get("tool_calls") or [])
    comments = [call["function"]["arguments"].pop("comment", "") for call in calls]
    thoughts = [str(message.get("reasoning_content") or before), *map(str, comments)]
    reasoning = "\n\n".join(thought.strip() for thought in thoughts if thought.strip())
    said = content.strip()
    new: Message = {"role": "assistant", "content": said if thinking else "\n\n".join(filter(None, (reasoning, said)))}
    if thinking and reasoning:
        new["reasoning_content"] = reasoning
    if calls:
        new["tool_calls"] = calls
    return new


def turn_status(record: EpisodeRecord) -> list[str]:
    """What became of each assistant message: a cell's status, `answered`, or `malformed`."""
    cells = {cell.turn: cell.status for cell in record.cells}
    statuses = [str(cells.get(turn, "malformed")) for turn in range(1, record.turns + 1)]
    if record.stop_reason == "answered" and statuses:
        statuses[-1] = "answered"
    return statuses
