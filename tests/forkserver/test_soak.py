"""Many kernels at once with faults among them: every fault has its status, and nothing is left or grows."""

import asyncio
import collections
import gc
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import eventually, has_ended

from jupyter_env.forkserver.client import Caps, ForkServer
from jupyter_env.forkserver.detect import features
from jupyter_env.forkserver.pidfd import pid_of
from jupyter_env.forkserver.shared import close_servers, shared_server
from jupyter_env.interpreters import IsolatedKernel, KernelSettings

missing = [feature for feature in features() if feature.required and feature.problem]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"this host does not isolate kernels: {missing}")

SETTINGS = KernelSettings(interrupt_grace_s=2, max_memory_bytes=2**29, max_work_bytes=2**26, max_processes=64, parked=4)
FAULTS = {
    "none": ("import pandas as pd; print(pd.read_csv('data/t.csv').a.sum())", "ok"),
    "error": ("1 / 0", "code_error"),
    "loop": ("while True: pass", "timeout"),
    "deaf": ("import signal; signal.signal(2, signal.SIG_IGN)\nwhile True: pass", "timeout"),
    "exit": ("import os; os._exit(1)", "kernel_died"),
    "crash": ("import ctypes; ctypes.string_at(0)", "kernel_died"),
    "memory": ("import numpy as np; np.ones(10**12)", "out_of_memory"),
    "daemon": ("import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True); print(1)", "ok"),
    "flood": ("print('x' * 5_000_000)", "ok"),
    "killed": ("import time; time.sleep(100)", "kernel_died"),
    "abandoned": ("import time; time.sleep(100)", "cancelled"),
}
WEIGHTS = [60] + [4] * (len(FAULTS) - 1)


async def episode(name: str, table: Path) -> str:
    """One kernel's life with this fault; returns what came of it."""
    code, expected = FAULTS[name]
    kernel = IsolatedKernel(SETTINGS)
    await kernel.start({"t.csv": table})
    try:
        first = await kernel.run_cell("x = 20 + 1\nprint(x)", timeout_s=60)
        assert first.text == "21", first
        cell = asyncio.ensure_future(kernel.run_cell(code, timeout_s=1.5 if expected == "timeout" else 60))
        if name in ("killed", "abandoned"):
            await asyncio.sleep(0.2)
            if name == "killed":
                os.kill(kernel.pid, signal.SIGKILL)
            else:
                cell.cancel()
        return (await cell).status
    except asyncio.CancelledError:
        return "cancelled"
    finally:
        await kernel.close()


async def run(total: int, at_a_time: int, table: Path, server: ForkServer) -> tuple[collections.Counter, list[dict]]:
    """The episodes, and what the client and the server used along the way."""
    rng, wrong, samples = random.Random(1), collections.Counter(), []
    left = [rng.choices(list(FAULTS), WEIGHTS)[0] for _ in range(total)]

    async def worker() -> None:
        while left:
            name = left.pop()
            status = await episode(name, table)
            if status != FAULTS[name][1]:
                wrong[name, status] += 1
            if len(left) % max(total // 10, 1) == 0:
                samples.append(used(server))

    await asyncio.gather(*(worker() for _ in range(at_a_time)))
    return wrong, samples


def used(server: ForkServer) -> dict[str, int]:
    gc.collect()
    mounts = Path(f"/proc/{server.pid}/mounts").read_text().count("\n")
    processes = {"client": psutil.Process(), "server": psutil.Process(server.pid)}
    sizes = {f"{name} MB": process.memory_info().rss // 2**20 for name, process in processes.items()}
    return {**sizes, "server fds": processes["server"].num_fds(), "mounts": mounts}


@pytest.fixture
def server() -> Iterator[ForkServer]:
    close_servers()
    yield shared_server(SETTINGS.python, isolated=True)
    close_servers()


async def soak(total: int, at_a_time: int, tmp_path: Path, server: ForkServer) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    before = used(server)
    await run(2 * at_a_time, at_a_time, tmp_path / "t.csv", server)
    descriptors = psutil.Process().num_fds()
    wrong, samples = await run(total, at_a_time, tmp_path / "t.csv", server)
    print(before, samples[0], samples[-1], sep="\n")
    assert not wrong
    kernels = [p for p in psutil.Process(server.pid).children(recursive=True) if p.name() == "jupyter-kernel"]
    assert eventually(lambda: len([kernel for kernel in kernels if not has_ended(kernel)]) <= SETTINGS.parked, 20)
    assert eventually(lambda: used(server)["server fds"] <= before["server fds"] + 4 * SETTINGS.parked, 20)
    assert eventually(lambda: psutil.Process().num_fds() <= descriptors + 2 * SETTINGS.parked, 20)
    assert eventually(lambda: len([p for p in server.folder.path.iterdir() if p.name.isdigit()]) <= SETTINGS.parked)
    assert used(server)["mounts"] == before["mounts"]
    keepers = [p.pid for p in psutil.Process(server.pid).children() if p.name() == "cgroup-keeper"]
    patterns = [f"**/jupyter-env-{pid}/*-*" for pid in keepers]
    groups = [group for pattern in patterns for group in Path("/sys/fs/cgroup").glob(pattern)]  # noqa: ASYNC240
    assert len([group for group in groups if group.is_dir()]) <= 2 * SETTINGS.parked
    for name in ("client MB", "server MB"):
        assert samples[-1][name] <= samples[0][name] * 1.1 + 10, f"{name} grows: {[s[name] for s in samples]}"


@pytest.mark.timeout(600)
async def test_200_kernels_16_at_a_time(tmp_path: Path, server: ForkServer):
    await soak(200, 16, tmp_path, server)


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_10_000_kernels_64_at_a_time(tmp_path: Path, server: ForkServer):
    await soak(10_000, 64, tmp_path, server)


async def test_a_server_that_is_killed_takes_its_kernels_along_and_is_replaced(tmp_path: Path, server: ForkServer):
    kernels = [IsolatedKernel(SETTINGS) for _ in range(4)]
    for kernel in kernels:
        await kernel.start({})
    processes = [psutil.Process(kernel.pid) for kernel in kernels]
    running = [asyncio.ensure_future(kernel.run_cell("import time; time.sleep(100)", 60)) for kernel in kernels]
    await asyncio.sleep(0.5)
    os.kill(server.pid, signal.SIGKILL)
    results = await asyncio.wait_for(asyncio.gather(*running), 20)
    assert {result.status for result in results} == {"infrastructure_error"}
    assert eventually(lambda: all(has_ended(process) for process in processes))
    for kernel in kernels:
        await kernel.close()
    after = IsolatedKernel(SETTINGS)
    await after.start({})
    assert (await after.run_cell("print(1)", 60)).text == "1"
    await after.close()
    assert shared_server(SETTINGS.python, isolated=True) is not server


async def test_claims_wait_for_a_place(server: ForkServer):
    settings = KernelSettings(max_live=2, parked=1)
    first, second, third = (IsolatedKernel(settings) for _ in range(3))
    await first.start({})
    await second.start({})
    waiting = asyncio.ensure_future(third.start({}))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    await first.close()
    await asyncio.wait_for(waiting, 20)
    late = asyncio.ensure_future(first.start({}))
    await asyncio.sleep(0.1)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    await second.close()
    await asyncio.wait_for(first.start({}), 20)
    for kernel in (first, third):
        await kernel.close()


def test_the_pid_of_a_pidfd():
    pidfd = os.pidfd_open(os.getpid())
    assert pid_of(pidfd) == os.getpid()
    os.close(pidfd)


async def test_kernels_closed_as_soon_as_they_are_there(server: ForkServer):
    """Their ends and their clients' are heard at the same time."""
    caps = Caps(work_bytes=2**26, memory_bytes=2**30, processes=64)

    async def live() -> None:
        for _ in range(8):
            kernel = server.spawn(caps, lean=True)
            await kernel.ready()
            kernel.close()

    await asyncio.gather(*(live() for _ in range(10)))
    assert server.alive()
