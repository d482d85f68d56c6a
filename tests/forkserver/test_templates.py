"""Kernels that start with data loaded, and share it."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from jupyter_env.forkserver.client import Caps, ForkServer
from jupyter_env.forkserver.detect import features
from jupyter_env.forkserver.forked import ServerError
from jupyter_env.forkserver.shared import shared_server
from jupyter_env.forkserver.templates import Templates
from jupyter_env.interpreters import InfrastructureError, IsolatedKernel, KernelSettings, LocalKernel

missing = [feature for feature in features() if feature.required and feature.problem]
needs_isolation = pytest.mark.skipif(bool(missing), reason=f"this host does not isolate kernels: {missing}")
CAPS = Caps(work_bytes=2**26, memory_bytes=2**33, processes=100)
LOAD = "import numpy as np\na = np.load('data/a.npy')"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.arange(20 * 2**20 // 8))
    return tmp_path / "a.npy"


@pytest.mark.parametrize("kind", [pytest.param(IsolatedKernel, marks=needs_isolation), LocalKernel])
async def test_kernels_start_with_what_the_setup_made(kind: type, table: Path):
    settings = KernelSettings(setup=LOAD, parked=0)
    kernels = [kind(settings) for _ in range(2)]
    for kernel in kernels:
        await kernel.start({"a.npy": table})
    first, second = kernels
    assert (await first.run_cell("print(a.sum()); a[0] = 7", 30)).text == str(np.load(table).sum())
    assert (await second.run_cell("import os; print(a[0], os.listdir('data'))", 30)).text == "0 ['a.npy']"
    for kernel in kernels:
        await kernel.close()


@pytest.mark.parametrize("kind", [pytest.param(IsolatedKernel, marks=needs_isolation), LocalKernel])
async def test_a_setup_that_fails_is_said(kind: type, table: Path):
    kernel = kind(KernelSettings(setup="1 / 0", parked=0))
    with pytest.raises(InfrastructureError, match="ZeroDivisionError"):
        await kernel.start({})
    await kernel.close()


@needs_isolation
async def test_the_data_is_shared(table: Path):
    kernels = [IsolatedKernel(KernelSettings(setup=LOAD, parked=0)) for _ in range(3)]
    for kernel in kernels:
        await kernel.start({"a.npy": table})
        await kernel.run_cell("print(a.sum())", 30)
    for kernel in kernels:
        assert psutil.Process(kernel.pid).memory_full_info().uss < 20 * 2**20  # of which the table alone would be all
        await kernel.close()


@needs_isolation
async def test_the_least_recently_used_idle_template_makes_room(table: Path):
    server = shared_server(KernelSettings().python, isolated=True)
    files = {"a.npy": str(table)}
    one = await server.template(files, LOAD)
    templates = Templates(server, budget_bytes=int(2.5 * one.private_bytes))
    one.close()
    pools = [await templates.pool(files, f"{LOAD}\nn = {n}", CAPS) for n in range(2)]
    busy = await pools[1].claim(files)
    assert await templates.pool(files, f"{LOAD}\nn = 0", CAPS) is pools[0]
    third = await templates.pool(files, f"{LOAD}\nn = 2", CAPS)
    assert pools[1].server.alive() and third.server.alive() and not pools[0].server.alive()
    busy.close()
    templates.close()
    assert server.alive()


@needs_isolation
async def test_a_table_that_changed_makes_another_template(table: Path):
    templates = Templates(shared_server(KernelSettings().python, isolated=True))
    files = {"a.npy": str(table)}
    first = await templates.pool(files, LOAD, CAPS)
    np.save(table, np.zeros(3))
    assert await templates.pool(files, LOAD, CAPS) is not first
    templates.close()


@needs_isolation
@pytest.mark.parametrize(
    ("files", "setup", "problem"),
    [
        ({"x": "/no/such/file"}, "", "No such file"),
        ({}, "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()", "threads"),
        ({}, "this is no Python", "SyntaxError"),
    ],
)
async def test_what_is_wrong_with_a_template_is_said(files: dict[str, str], setup: str, problem: str):
    server = shared_server(KernelSettings().python, isolated=True)
    with pytest.raises((ServerError, FileNotFoundError), match=problem):
        await server.template(files, setup)
    assert server.alive()


@needs_isolation
def test_one_template_serves_all_event_loops(table: Path):
    templates = Templates(shared_server(KernelSettings().python, isolated=True))
    files, pools = {"a.npy": str(table)}, []

    def ask() -> None:
        pools.append(asyncio.run(templates.pool(files, LOAD, CAPS)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pools) == 4 and len(set(pools)) == 1
    templates.close()


@needs_isolation
def test_a_preload_that_is_broken_is_said_and_one_that_is_not_installed_is_not():
    with pytest.warns(UserWarning, match=r"numpy\.not_there") as warned:
        ForkServer(preload=("not_installed", "numpy.not_there")).close()
    assert len(warned) == 1
