"""What becomes of uploaded files on the disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jupyter_env.watch.uploads import Uploads


async def test_names_that_differ_in_case_alone_are_told_apart(tmp_path: Path) -> None:
    """On many disks they are one file."""

    async def text(content: bytes) -> AsyncIterator[bytes]:
        yield content

    uploads = Uploads(tmp_path)
    assert await uploads.take("Data.csv", text(b"a")) == "Data.csv"
    assert await uploads.take("data.CSV", text(b"b")) == "data-2.csv"
    (tmp_path / "other.csv").write_text("c")  # what lies there is not taken away by an upload that fails
    with pytest.raises(FileExistsError):
        await uploads.take("other.csv", text(b"d"))
    assert (tmp_path / "other.csv").read_text() == "c" and "other.csv" not in uploads
