"""Model calls that are paid once: every reply is on the disk before anything is made of it.

A unit of a stage has one journal, a file of JSON lines that only grows: a key (the hash of all that a reply depends on)
and the reply. A run that was killed asks again only what was under way; one with other thresholds or checks asks only
what it had not asked before.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import xxhash

from jupyter_env.action import Message, split_reasoning
from jupyter_env.chat import ContextOverflow, Reply, Usage
from jupyter_env.models.server import inlined_schema
from pipeline.ledger import LedgerError
from pipeline.models import EndpointPool, ModelSettings

T = TypeVar("T")


class BadReply(Exception):
    """A model's reply that can't be used, again and again; `reason` is one of a few fixed words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class _Line(msgspec.Struct, frozen=True):
    key: str
    reply: Reply


class Journal:
    """The replies of one unit, open for appending by the process that holds the unit's ledger.

    Raises:
        LedgerError: a line other than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.usage = Usage()
        """Of the replies that this process asked for; those found on the disk cost nothing."""
        self._replies: dict[str, Reply] = {}
        self._asked: dict[str, asyncio.Task[Reply]] = {}
        self._turn = asyncio.Lock()
        size = 0
        if path.exists():
            with path.open("rb") as lines:
                for number, raw in enumerate(lines, start=1):
                    if not raw.endswith(b"\n"):
                        break  # cut by a kill: that reply is asked for again
                    line = self._decoded(raw, number)
                    self._replies[line.key] = line.reply
                    size += len(raw)
        self._file = path.open("ab", buffering=0)  # a buffer would keep what a full disk refused, and write it later
        self._file.truncate(size)

    def _decoded(self, raw: bytes, number: int) -> _Line:
        try:
            return _decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise LedgerError(
                f"{self.path}, line {number}: {error}. It was damaged by something other than a crash; remove the "
                "line, and its reply is asked for again"
            ) from None

    async def reply(self, key: str, ask: Callable[[], Awaitable[Reply]]) -> Reply:
        """The reply of this key, asked for only if it is not on the disk and nobody else is asking."""
        if key in self._replies:
            return self._replies[key]
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(self._ask(key, ask))
        try:
            return await asyncio.shield(self._asked[key])
        finally:
            if key in self._asked and self._asked[key].done():
                del self._asked[key]

    async def _ask(self, key: str, ask: Callable[[], Awaitable[Reply]]) -> Reply:
        reply = await ask()
        line = _encoder.encode(_Line(key, msgspec.structs.replace(reply, message=_encodable(reply.message)))) + b"\n"
        async with self._turn:
            await asyncio.to_thread(self._write, line)
        self._replies[key] = reply = _decoder.decode(line).reply  # as a resumed run would have it
        self.usage += reply.usage
        return reply

    def _write(self, line: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise

    async def close(self) -> None:
        """Wait for nothing: what is still being asked is cancelled."""
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)
        self._file.close()


class Caller:
    """One model as one unit's work asks it: through the journal.

    Args:
        attempts: tries for a usable structured reply, each with a seed of its own.
    """

    def __init__(self, pool: EndpointPool, settings: ModelSettings, journal: Journal, attempts: int = 2) -> None:
        self._pool, self._settings, self._journal, self._attempts = pool, settings, journal, attempts

    async def ask(
        self,
        affinity: str,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        *,
        seed: int | None = None,
        schema: dict[str, Any] | None = None,
    ) -> Reply:
        """One reply; raises as `chat.Model` says."""
        content = [self._settings.identity, messages, tools, seed, schema]
        key = xxhash.xxh3_128_hexdigest(msgspec.json.encode(content, order="deterministic"))
        return await self._journal.reply(
            key, lambda: self._pool.ask(affinity, messages, tools, seed=seed, schema=schema)
        )

    async def structured(self, affinity: str, messages: Sequence[Message], kind: type[T], *, seed: int = 0) -> T:
        """A reply as data of this type.

        Raises:
            BadReply: no try gave one: `reply_cut` (at the token limit: endless text looks so too), `reply_refused`,
                `reply_empty`, `reply_not_json`, `reply_wrong_shape`, or `too_long_for_the_model`.
            ModelUnavailable, ModelSetupError: see `chat.Model`.
        """
        schema = inlined_schema(kind)
        for attempt in range(self._attempts):
            try:
                reply = await self.ask(affinity, messages, seed=seed + 1000 * attempt, schema=schema)
            except ContextOverflow as error:
                raise BadReply("too_long_for_the_model", str(error)) from None
            try:
                return read_structured(reply, kind)
            except BadReply as error:
                bad = error
        raise bad


_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


def read_structured(reply: Reply, kind: type[T]) -> T:
    """The data in a reply.

    Raises:
        BadReply: see `Caller.structured`.
    """
    content = str(reply.message.get("content") or "")
    text = split_reasoning(content)[1].strip()
    if reply.finish_reason == "length":
        raise BadReply("reply_cut", f"after {reply.usage.completion_tokens:,} tokens; it ends {text[-60:]!r}")
    if reply.finish_reason == "content_filter" or reply.message.get("refusal"):
        raise BadReply("reply_refused", text[:200])
    if not text:
        raise BadReply("reply_empty", "")
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise BadReply("reply_wrong_shape", str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise BadReply("reply_not_json", f"{error}; it begins {text[:80]!r}") from None


def _encodable(value: Any) -> Any:
    """Without halves of surrogate pairs, which models emit and UTF-8 does not hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_encodable(key): _encodable(part) for key, part in value.items()}
    return [_encodable(part) for part in value] if isinstance(value, list) else value


class _UsageOnly(msgspec.Struct):
    usage: Usage = Usage()


class _UsageLine(msgspec.Struct):
    reply: _UsageOnly


def usage_of(journals: Iterable[Path]) -> Usage:
    """What the replies of journals have used, read while they may be growing."""
    total = Usage()
    for path in journals:
        with path.open("rb") as lines:
            for raw in lines:
                if raw.endswith(b"\n"):
                    total += _usage_decoder.decode(raw).reply.usage
    return total


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Line)
_usage_decoder = msgspec.json.Decoder(_UsageLine)
