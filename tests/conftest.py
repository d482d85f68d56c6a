"""What several test files use. Being here also puts this folder on the import path, for `fakes`."""

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jupyter_env.answer import Integer
from jupyter_env.interpreters import LocalKernel, close_servers
from jupyter_env.interpreters.process import MARK
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


def kernel_processes() -> list[psutil.Process]:
    """The processes of kernels, parked ones too, that this process or its children started."""
    descendants = psutil.Process().children(recursive=True)
    parents = {str(process.pid) for process in (psutil.Process(), *descendants)}
    found = [process for process in descendants if _name(process) == "jupyter-kernel"]
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if MARK in environment and environment.get("JPY_PARENT_PID") in parents:
            found.append(process)
    return found


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def has_ended(process: psutil.Process) -> bool:
    """Whether it runs no more; who has lost its parent may stay a zombie."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(holds: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Whether the callable becomes true: sockets and threads end a moment after their closing."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


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
