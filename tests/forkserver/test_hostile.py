"""Hostile and clumsy code in an isolated kernel: the right status, a witness beside it untouched, nothing left."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from hostile import CASES
from processes import eventually, has_ended

from jupyter_env.forkserver import cgroups
from jupyter_env.forkserver.detect import features
from jupyter_env.forkserver.shared import close_servers, shared_server
from jupyter_env.interpreters import IsolatedKernel, KernelSettings

missing = [feature for feature in features() if feature.required and feature.problem]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"this host does not isolate kernels: {missing}")

SETTINGS = KernelSettings(
    interrupt_grace_s=1.5, max_memory_bytes=512 * 2**20, max_work_bytes=64 * 2**20, max_processes=64, parked=2
)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After all cases: no process, control group, folder or descriptor."""
    close_servers()
    descriptors = psutil.Process().num_fds()
    server = shared_server(SETTINGS.python, isolated=True)
    yield
    assert server.alive()
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    folder = server.folder.path
    close_servers()
    assert eventually(lambda: all(has_ended(process) for process in processes))
    assert not folder.exists()
    groups = [Path(parent) for parent in cgroups.find().values()]
    pids = {str(process.pid) for process in processes}
    assert eventually(lambda: not [g for p in groups for g in p.glob("jupyter-env-*") if g.name[12:] in pids])
    assert eventually(lambda: psutil.Process().num_fds() <= descriptors + 12)  # libzmq's and asyncio's own


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    path.write_text("a\n1\n")
    return {"t.csv": path}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def witness(table: dict[str, Path]) -> AsyncIterator[IsolatedKernel]:
    kernel = IsolatedKernel(SETTINGS)
    await kernel.start(table)
    await kernel.run_cell("x = 41; open('mine', 'w').write('mine')", 30)
    yield kernel
    await kernel.close()


@pytest.fixture(scope="module", autouse=True)
def secret() -> Iterator[None]:
    os.environ["MY_SECRET_TOKEN"] = "x"
    yield
    del os.environ["MY_SECRET_TOKEN"]


def descendants(kernel: IsolatedKernel) -> list[psutil.Process]:
    try:
        return psutil.Process(kernel.pid).children(recursive=True) if kernel.pid else []
    except psutil.NoSuchProcess:
        return []


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", CASES)
async def test_hostile_code(witness: IsolatedKernel, table: dict[str, Path], name: str):
    code, statuses, alive, shown = CASES[name]
    kernel = IsolatedKernel(SETTINGS)
    await kernel.start(table)
    try:
        result = await asyncio.wait_for(kernel.run_cell(code, timeout_s=3), 30)
        assert result.status in ((statuses,) if isinstance(statuses, str) else statuses), result.text
        assert shown in result.text
        if alive is not None:
            assert result.alive == alive, result.text
        if alive:
            after = await kernel.run_cell("print(20 + 1)", timeout_s=20)
            assert after.text.endswith("21"), after.text
    finally:
        processes = descendants(kernel)
        await kernel.close()
    assert eventually(lambda: all(has_ended(process) for process in processes))
    untouched = await witness.run_cell("import os; x += 1; print(x - x + 42, sorted(os.listdir('.')))", timeout_s=30)
    assert untouched.text == "42 ['data', 'mine']"
    assert table["t.csv"].read_text() == "a\n1\n"


@pytest.mark.skipif(os.getuid() != 0, reason="runs as an ordinary user already")
@pytest.mark.timeout(900)
def test_the_same_as_an_ordinary_user(tmp_path: Path):
    here = Path(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(here)]
    python = [sys.executable, str(here.parent.parent / "as_user.py")]
    done = subprocess.run([*python, *command], cwd=here.parent.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert f"{len(CASES)} passed" in done.stdout
