"""A disk that fills up in the middle of a line: the journal holds whole lines, before and after."""

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jupyter_env.chat import Reply
from pipeline.calls import Journal


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files can't grow beyond this size: the kernel takes what fits and refuses the rest, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_did_not_fit_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "unit.jsonl"

    async def said(text: str) -> Reply:
        return Reply(message={"role": "assistant", "content": text})

    async def fill() -> None:
        journal = Journal(path)
        await journal.reply("first", lambda: said("one"))
        whole = path.read_bytes()
        with room_for(len(whole) + 20), pytest.raises(OSError, match="too large"):
            await journal.reply("second", lambda: said("two"))
        assert path.read_bytes() == whole
        await journal.reply("third", lambda: said("three"))
        await journal.close()

    async def again() -> Reply:
        journal = Journal(path)
        found = await journal.reply("third", lambda: said("asked again"))
        await journal.close()
        return found

    asyncio.run(fill())
    assert len(path.read_bytes().splitlines()) == 2
    assert asyncio.run(again()).message["content"] == "three"
