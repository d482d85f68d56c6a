"""Branches of live kernels: the same state, a life and files of their own."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from processes import eventually

from jupyter_env.answer import Integer
from jupyter_env.episode import Episode
from jupyter_env.forkserver.detect import features
from jupyter_env.interpreters import BranchError, IsolatedKernel, KernelSettings, LocalKernel
from jupyter_env.task import Task

missing = [feature for feature in features() if feature.required and feature.problem]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"this host does not isolate kernels: {missing}")
BRANCHABLE = KernelSettings(branchable=True, parked=0)


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncIterator[IsolatedKernel]:
    (tmp_path / "t.csv").write_text("a\n1\n")
    kernel = IsolatedKernel(BRANCHABLE)
    await kernel.start({"t.csv": tmp_path / "t.csv"})
    yield kernel
    await kernel.close()


async def shown(kernel: IsolatedKernel, code: str) -> str:
    return (await kernel.run_cell(code, timeout_s=30)).text


async def test_state_is_copied_and_then_independent(kernel: IsolatedKernel):
    await shown(kernel, "x = [1]; numbers = iter(range(10)); next(numbers)\nimport random; random.seed(7)")
    branch = await kernel.branch()
    try:
        assert (
            await shown(branch, "x.append(2); print(x, next(numbers), random.random())")
            == "[1, 2] 1 0.32383276483316237"
        )
        assert await shown(kernel, "print(x, next(numbers), random.random())") == "[1] 1 0.32383276483316237"
    finally:
        await branch.close()


async def test_files_are_copied_and_data_is_shared(kernel: IsolatedKernel):
    await shown(kernel, "import os; os.mkdir('d'); open('d/f', 'w').write('before'); os.symlink('d/f', 'link')")
    await shown(kernel, "os.mkfifo('pipe'); open('/tmp/t', 'w').write('t'); os.chdir('d')")
    branch = await kernel.branch()
    try:
        assert (
            await shown(branch, "print(os.getcwd(), open('f').read(), open('/tmp/t').read())")
            == "/agent/work/d before t"
        )
        await shown(branch, "open('f', 'w').write('branch'); open('/agent/work/new', 'w')")
        assert (
            await shown(kernel, "print(open('f').read(), sorted(os.listdir('..')))")
            == "before ['d', 'data', 'link', 'pipe']"
        )
        assert await shown(branch, "print(open('../link').read(), open('../data/t.csv').read())") == "branch a\n1"
        assert "Errno" in await shown(branch, "open('../data/t.csv', 'a')")
    finally:
        await branch.close()


@pytest.mark.parametrize("end", ["close", "kill", "code"])
async def test_a_branch_outlives_its_parent(tmp_path: Path, end: str):
    parent = IsolatedKernel(BRANCHABLE)
    await parent.start({})
    await shown(parent, "x = 42")
    branch = await parent.branch()
    if end == "kill":
        psutil.Process(parent.pid).kill()
    elif end == "code":
        assert (await parent.run_cell("import os; os._exit(1)", 30)).status == "kernel_died"
    await parent.close()
    assert await shown(branch, "print(x)\n!echo shell") == "42\nshell"
    family = [process for process in psutil.process_iter(["name"]) if process.info["name"] == "kernel-family"]
    await branch.close()
    assert eventually(lambda: not any(process.is_running() for process in family[-1:]))


async def test_branches_of_branches_are_isolated_as_well(kernel: IsolatedKernel):
    await shown(kernel, "x = 0")
    branches = [kernel]
    for _ in range(3):
        branches.append(await branches[-1].branch())
        await shown(branches[-1], "x += 1; open(f'f{x}', 'w').close()")
    last = branches[-1]
    assert await shown(last, "import os; print(x, sorted(os.listdir('.')))") == "3 ['data', 'f1', 'f2', 'f3']"
    checks = (
        "import ctypes; c = ctypes.CDLL(None)\nprint(c.unshare(0x10000000), c.mount(b'x', b'/tmp', b'tmpfs', 0, None))"
    )
    assert await shown(last, checks) == "-1 -1"
    caps = (
        "print([line.split()[1] for line in open('/proc/self/status') if line[:6] in ('CapEff', 'CapPrm', 'CapBnd')])"
    )
    assert await shown(last, caps) == "['0000000000000000', '0000000000000000', '0000000000000000']"
    for branch in branches[1:]:
        await branch.close()


async def test_interrupt_death_and_memory_of_a_branch(kernel: IsolatedKernel):
    branch = await kernel.branch()
    result = await branch.run_cell("while True: pass", timeout_s=1)
    assert (result.status, result.alive) == ("timeout", True)
    assert (await branch.run_cell("import os; os._exit(1)", 30)).status == "kernel_died"
    await branch.close()
    assert await shown(kernel, "print('lives')") == "lives"


@pytest.mark.parametrize(
    ("code", "obstacle"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(100,)).start()", "threads"),
        ("import subprocess; p = subprocess.Popen(['sleep', '100'])", "processes"),
        ("import asyncio; t = asyncio.ensure_future(asyncio.sleep(100))", "asyncio tasks"),
    ],
)
async def test_what_cannot_be_branched_says_so(kernel: IsolatedKernel, code: str, obstacle: str):
    await shown(kernel, code)
    with pytest.raises(BranchError, match=obstacle):
        await kernel.branch()
    assert await shown(kernel, "print('lives')") == "lives"


async def test_kernels_that_were_not_started_for_it_say_so():
    for kernel in (IsolatedKernel(KernelSettings(parked=0)), LocalKernel()):
        await kernel.start({})
        with pytest.raises(BranchError, match="branchable"):
            await kernel.branch()
        await kernel.close()


async def test_a_kernel_that_lies_about_its_branch(kernel: IsolatedKernel):
    """Its code can read the line on which the server asks; a false answer is refused or harmless."""
    await shown(
        kernel,
        "import asyncio, os, socket\n"
        "lines = [int(n) for n in os.listdir('/proc/self/fd') if int(n) > 2]\n"
        "for n in lines:\n"
        "    try:\n"
        "        s = socket.socket(fileno=os.dup(n))\n"
        "        if s.type == socket.SOCK_SEQPACKET: s.send(b'{}'); s.send(b'garbage')\n"
        "        s.detach()\n"
        "    except OSError: pass",
    )
    with pytest.raises(BranchError):
        await kernel.branch()
    other = IsolatedKernel(BRANCHABLE)
    await other.start({})
    assert await shown(other, "print('the server lives')") == "the server lives"
    await other.close()


async def test_an_episode_is_branched():
    task = Task(id="a", question="What is x?", answer=Integer(value=42))
    episode = Episode(task, {}, lambda: IsolatedKernel(BRANCHABLE))
    await episode.start()
    await episode.step("```python\nx = 41\n```")
    twins = await asyncio.gather(*(episode.branch(str(n)) for n in range(2)))
    for n, twin in enumerate(twins):
        step = await twin.step(f"```python\nx += {n}; print(x)\n```")
        assert step.observation == str(41 + n)
        assert (await twin.step(f"final_answer: {41 + n}")).reward == float(n)
        assert [cell.turn for cell in twin.record.cells] == [1, 2]
        await twin.close()
    assert (await episode.step("```python\nprint(x)\n```")).observation == "41"
    assert len({episode.record.id, *(twin.record.id for twin in twins)}) == 3
    await episode.close()
    with pytest.raises(RuntimeError, match="running"):
        await episode.branch("late")
