"""The agent: a loop around a model and an episode. No framework, two tools, one call a turn.

The model is asked, its message goes to the episode, the observation comes back into the conversation, until an
answer, a budget, or the model itself ends it. All rules of the work are the episode's; here is what concerns the
model: which prompt it gets, when it is given up, and what is shortened when its context is full.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files as resource_files
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from jupyter_env.action import Message
from jupyter_env.chat import ContextOverflow, Model, Reply
from jupyter_env.episode import SYSTEM_PROMPT, Episode

PROMPTS = ("system", "thinking", "code")
"""Families with a prompt of their own: models that do not think, that think, and code models, which call tools
without a word unless a comment is required."""

_KEPT_HEAD, _KEPT_TAIL = 300, 200
"""Characters left of an old output that is shortened: what it was, and how it ended."""


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is led through an episode."""

    system_prompt: str = SYSTEM_PROMPT
    require_comment: bool = False
    """See `action.tool_schemas`; the prompt "code" asks for it."""
    max_turns_without_call: int = 3
    """In a row; a model that has answered three observations of what was wrong with prose goes on with prose."""
    context_tokens: int | None = None
    """Of the model. None: unknown, and the server's refusal of a conversation tells."""
    reply_tokens: int = 1024
    """Kept free for the next reply; servers refuse a prompt that leaves no room for `max_tokens`."""


def agent_settings(prompt: str = "system", **fields: Any) -> AgentSettings:
    """Settings with a prompt by its family's name or from a file of the user's own.

    Raises:
        ValueError: neither a family nor a readable file.
    """
    if prompt in PROMPTS:
        text = resource_files("jupyter_env").joinpath(f"prompts/{prompt}.txt").read_text(encoding="utf-8")
    else:
        try:
            text = Path(prompt).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the prompts are {', '.join(PROMPTS)} or a text file, not {prompt!r}: {error}") from None
    return AgentSettings(system_prompt=text.strip(), require_comment=prompt == "code", **fields)


async def work(episode: Episode, model: Model, settings: AgentSettings = AgentSettings()) -> None:  # noqa: B008
    """Lead a started episode to its end.

    Raises:
        InfrastructureError: the interpreter failed.
        ModelUnavailable, ModelSetupError: as `chat.Model` says; the episode is then still open.
    """
    context = _Context(settings)
    without_call = 0
    while not episode.done:
        reply = await _ask(episode, model, context)
        if reply is None:
            episode.stop("context_limit")
            return
        step = await episode.step(reply.message, cut=reply.finish_reason == "length")
        without_call = without_call + 1 if step.status == "malformed" else 0
        if without_call >= settings.max_turns_without_call:
            episode.stop("no_call")


async def _ask(episode: Episode, model: Model, context: _Context) -> Reply | None:
    """The model's next turn; None if the conversation cannot be made to fit."""
    while True:
        if not context.make_fit(episode):
            return None
        sent = episode.messages
        began_s = monotonic()
        try:
            reply = await model(sent, episode.tools)
        except ContextOverflow:
            context.was_too_long(sent)
            continue
        finally:
            episode.record.model_s += monotonic() - began_s
        episode.record.usage += reply.usage
        context.was_taken(sent, reply)
        return reply


class _Context:
    """How much fits, learned from what the server counts and refuses."""

    def __init__(self, settings: AgentSettings) -> None:
        self._limit = settings.context_tokens
        self._reply_tokens = settings.reply_tokens
        self._tokens_per_char = 1 / 3  # until the first reply; English and code have 1/4 to 1/3

    def make_fit(self, episode: Episode) -> bool:
        """Shorten old outputs, oldest first, until the next turn fits; whether it does."""
        if self._limit is None:
            return True
        while self._tokens(episode.messages) + self._reply_tokens > self._limit:
            if not shorten_oldest(episode.messages):
                return False
            episode.record.shortened_outputs += 1
        return True

    def was_taken(self, messages: Sequence[Message], reply: Reply) -> None:
        if reply.usage.prompt_tokens:  # tools and template marks are in it, so the estimate is on the safe side
            self._tokens_per_char = reply.usage.prompt_tokens / sum(map(_chars, messages))

    def was_too_long(self, messages: Sequence[Message]) -> None:
        """What was just refused is over the limit, whatever was thought; a tenth less is tried."""
        self._limit = int(0.9 * self._tokens(messages)) + self._reply_tokens - 1

    def _tokens(self, messages: Sequence[Message]) -> float:
        return self._tokens_per_char * sum(map(_chars, messages))


def shorten_oldest(messages: list[Message]) -> bool:
    """Shorten the oldest output that still is whole, saying so in its place; False if none is left.

    Training data that is too long is shortened by it too.
    """
    for message in messages[2:]:
        content = message.get("content")
        if message["role"] == "assistant" or not isinstance(content, str):
            continue
        removed = len(content) - _KEPT_HEAD - _KEPT_TAIL
        if removed > 100:  # less would hardly gain the room that saying it takes
            said = f"\n[... {removed:,} characters of this output were removed to make room; run the cell again ...]\n"
            message["content"] = content[:_KEPT_HEAD] + said + content[-_KEPT_TAIL:]
            return True
    return False


def _chars(message: Message) -> int:
    """Of a message, roughly as a chat template writes it."""
    calls = message.get("tool_calls")
    reasoning = message.get("reasoning_content")
    return (
        len(str(message.get("content") or ""))
        + (len(reasoning) if isinstance(reasoning, str) else 0)
        + (len(json.dumps(calls, ensure_ascii=False, default=str)) if calls else 0)
        + 20
    )
