"""The models that stages ask: which, where they are served, how many notebooks their caches have room for."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from jupyter_env.action import Message
from jupyter_env.chat import ModelUnavailable, Reply


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model by name, how it is asked, and what it is served with."""

    name: str = ""
    """As its server knows it; empty where there is none, and the stages that need it are left out."""
    endpoints: tuple[str, ...] = ()
    """Base URLs that serve it (`http://node:8000/v1`); a notebook stays with one of them, for its prefix cache."""
    serve: str = ""
    """In place of endpoints: a command that serves it, started once in each task, with `{model}` and `{port}`."""
    start_timeout_s: float = 1800.0
    """Loading 480B weights from a shared disk takes a quarter of an hour."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable with the servers' key; no key is sent where it is not set."""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int = 4096
    """Of one reply."""
    extra: dict[str, Any] = {}
    """More fields of a request, such as `chat_template_kwargs`."""
    timeout_s: float = 600.0
    max_retries: int = 9
    """With waits of 0.5 s doubling to 30 s: a server may be gone for two minutes before an item counts as failed."""
    gpus: int = 1
    """That one server takes; for the estimate of GPU hours."""
    kv_cache_bytes: int = 40 * 10**9
    """Of one server: what the weights leave of its GPUs. Qwen3-32B in FP8 leaves about 40 GB of an H100's 80."""
    kv_bytes_per_token: int = 262_144
    """Qwen3-32B: 64 layers x 8 heads x 128 x 2 (keys, values) x 2 bytes."""
    prefill_tokens_per_s: float = 5000.0
    """Of one server, for the estimate; published runs of Qwen3-32B in FP8 on an H100 have 4,100 to 5,900 in all."""
    decode_tokens_per_s: float = 1000.0
    """Of one server with its batch full, for the estimate."""

    @property
    def identity(self) -> dict[str, Any]:
        """What of it replies depend on; not where and how fast it is served."""
        names = ("name", "temperature", "top_p", "max_tokens", "extra")
        return {name: getattr(self, name) for name in names}

    def conversations_in_cache(self, tokens: int) -> int:
        """How many conversations of so many tokens one server's cache holds: more at a time, and they evict each
        other's prefixes."""
        return max(1, self.kv_cache_bytes // (max(1, tokens) * self.kv_bytes_per_token))


class EndpointPool:
    """A model behind several servers: a conversation goes to the server of its key, to the next where that is down.

    Args:
        urls: of the servers; none for the client's default (OpenAI's).
        concurrency: requests at a time, for each server.

    Raises:
        ModelSetupError: the openai client is not installed.
    """

    def __init__(self, settings: ModelSettings, urls: Sequence[str], concurrency: int) -> None:
        from jupyter_env.models.server import Sampling, ServerModel

        sampling = Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            extra=settings.extra,
        )
        self._servers = [
            ServerModel(
                settings.name,
                url,
                api_key=os.environ.get(settings.api_key_env, ""),
                sampling=sampling,
                concurrency=concurrency,
                timeout_s=settings.timeout_s,
                max_retries=settings.max_retries,
            )
            for url in (urls or (None,))
        ]

    async def ask(
        self,
        affinity: str,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        *,
        seed: int | None = None,
        schema: dict[str, Any] | None = None,
    ) -> Reply:
        """One reply; raises as `chat.Model` says, once every server has been tried."""
        first = zlib.crc32(affinity.encode()) % len(self._servers)
        for number in range(len(self._servers)):
            server = self._servers[(first + number) % len(self._servers)]
            try:
                return await server(messages, tools, seed=seed, schema=schema)
            except ModelUnavailable:
                if number == len(self._servers) - 1:
                    raise
        raise AssertionError("there is at least one server")

    async def close(self) -> None:
        """Close the connections."""
        for server in self._servers:
            await server.close()
