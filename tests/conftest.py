"""What several test files use. Being here also puts this folder on the import path, for `fakes`."""

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import eventually, kernel_processes

from jupyter_env.answer import Integer
from jupyter_env.interpreters import LocalKernel, close_servers
from jupyter_env.task import DataFile, Task, TaskPool


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A folder with two small tables."""
    root = tmp_path / "tables"
    (root / "deep").mkdir(parents=True)
    (root / "penguins.csv").write_text("species,mass\nAdelie,3700\nGentoo,5000\n")
    (root / "deep" / "größe.csv").write_text("größe\n1\n2\n3\n", encoding="utf-8")
    return root


@pytest.fixture
def pool(data_root: Path) -> TaskPool:
    """Three tasks; the first two have a table each."""
    penguins, sizes = (DataFile.of(path, data_root) for path in ("penguins.csv", "deep/größe.csv"))
    tasks = [
        Task(id="rows", question="How many penguins?", answer=Integer(value=2), files=(penguins,), dataset="penguins"),
        Task(id="sizes", question="How many sizes, 多少?", answer=Integer(value=3), files=(sizes,), level="hard"),
        Task(id="sum", question="What is 40 + 2?", answer=Integer(value=42), guidelines="A whole number."),
    ]
    return TaskPool(tasks, data_root)


@pytest.fixture(scope="session")
def warm_process() -> None:
    """One kernel's life, after which the messaging library's own threads and descriptors exist."""

    async def live() -> None:
        kernel = LocalKernel()
        await kernel.start({})
        await kernel.close()

    asyncio.run(live())


@pytest.fixture
def no_leaks(warm_process: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Fails the test that leaves a process, a thread, a descriptor or a file; gives the folder of temporary files."""
    close_servers()
    folder = Path(tempfile.mkdtemp(prefix="jet-"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    threads, descriptors = set(threading.enumerate()), psutil.Process().num_fds()
    try:
        yield folder
        close_servers()
        assert eventually(lambda: not kernel_processes()), f"left running: {kernel_processes()}"
        assert eventually(lambda: set(threading.enumerate()) <= threads), f"left: {threading.enumerate()}"
        assert eventually(lambda: psutil.Process().num_fds() <= descriptors), (
            f"{psutil.Process().num_fds()} descriptors are open where {descriptors} were before"
        )
        assert list(folder.iterdir()) == [], "left in the folder of temporary files"
    finally:
        shutil.rmtree(folder)
