"""The local kernel against hostile and clumsy code: the right status each time, and nothing left behind."""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
import venv
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from processes import eventually, kernel_processes

from jupyter_env.interpreters import CellResult, InfrastructureError, KernelSettings, LocalKernel
from jupyter_env.interpreters.local import _remove

pytestmark = pytest.mark.usefixtures("no_leaks")

SETTINGS = KernelSettings(interrupt_grace_s=1.0)


@contextlib.asynccontextmanager
async def running(settings: KernelSettings = SETTINGS, **files: Path) -> AsyncIterator[LocalKernel]:
    kernel = LocalKernel(settings)
    try:
        await kernel.start({name.replace("__", "/"): path for name, path in files.items()})
        yield kernel
    finally:
        await kernel.close()


async def run(kernel: LocalKernel, code: str, timeout_s: float = 20.0) -> CellResult:
    return await kernel.run_cell(code, timeout_s)


async def is_usable(kernel: LocalKernel, keeps: str = "kept") -> bool:
    result = await run(kernel, "print(kept, 6 * 7)")
    return result.alive and result.status == "ok" and result.text == f"{keeps} 42"


# Code that leaves a kernel usable: the cell's status, what the model reads, and seconds before the interrupt.
SURVIVED: dict[str, tuple[str, str, str, float]] = {
    "an endless loop": ("while True: pass", "timeout", "KeyboardInterrupt", 0.5),
    "sleep": ("import time; time.sleep(1000)", "timeout", "interrupted at its limit of 0.5 s", 0.5),
    "an endless loop of prints": ("while True: print('spam')", "timeout", "lines shown", 1),
    "an exception": ("1 / 0", "code_error", "ZeroDivisionError: division by zero", 60),
    "no Python": ("this is no python", "code_error", "SyntaxError", 20),
    "a request for 8 TB": ("import numpy as np; np.ones(10**12)", "out_of_memory", "MemoryError", 20),
    "300,000 prints": ("for i in range(300_000): print(i)", "ok", "of 300000 lines shown", 20),
    "a print of 100 MB": ("print('x' * 10**8)", "ok", "output too long", 20),
    "a print of 20 MB, then an error": ("print('x' * 2 * 10**7); 1 / 0", "code_error", "ZeroDivisionError", 20),
    "a thousand figures of 100 kB": (
        "for i in range(1000): display({'image/png': 'A' * 10**5}, raw=True)", "ok", "output too long", 20),
    "3,000 displays": ("for i in range(3000): display({'text/plain': 'x'}, raw=True)", "ok", "lines shown", 20),
    "a thousand errors": (
        "ip = get_ipython()\nfor i in range(1000):\n    try: raise ValueError('y' * 20_000)\n"
        "    except ValueError: ip.showtraceback()\n1 / 0", "code_error", "ZeroDivisionError: division by zero", 60),
    "input()": ("input('name? ')", "code_error", "StdinNotImplementedError", 20),
    "closing fds 0 to 2": ("import os\nfor fd in range(3): os.close(fd)\nprint('still here')", "ok", "still here", 20),
    "exit()": ("exit()", "ok", "", 20),
    "quit": ("quit", "ok", "", 20),
    "sys.exit": ("import sys; sys.exit(3)", "code_error", "SystemExit: 3", 20),
    "a NUL byte": ("print('a\0b')", "code_error", "null bytes", 20),
    "half a surrogate pair in the code": ("print('\ud83d')", "code_error", "surrogates not allowed", 20),
    "half a surrogate pair printed": ("print(chr(0xd83d) + 'after')", "ok", "", 20),
    "an escaped byte printed": ("print(chr(0xdc80) + 'after')", "ok", "after", 20),
    "half a surrogate pair raised": ("raise ValueError(chr(0xd83d))", "code_error", "", 20),
    "an escaped byte raised": ("raise ValueError(chr(0xdc80))", "code_error", "ValueError: ", 20),
    "5 MB of code": (f"x = '{'y' * 5_000_000}'; print(len(x))", "ok", "5000000", 20),
    "deleting its working folder": ("import os, shutil; shutil.rmtree(os.getcwd())", "ok", "", 20),
    "taking its folder's permissions away": (
        "import os\nos.makedirs('a/b/c/d/e')\nfor p in ('a/b/c/d', 'a/b/c', 'a/b', 'a', '.', '..'): os.chmod(p, 0)",
        "ok", "", 20),
    "a symlink to the outside": ("import os; os.symlink('/etc', 'etc'); os.chmod('.', 0o500)", "ok", "", 20),
    "displays that are no text": (
        "display({'text/plain': 5}, raw=True); display({'image/png': None, 'x': [1]}, raw=True); print('end')",
        "ok", "5\n[image/png]\nend", 20),
    "messages that are none": (
        "k = get_ipython().kernel\n"
        "for kind, content in (('clear_output', {}), ('stream', {'name': 'stdout', 'text': 5}), ('stream', {}),\n"
        "    ('display_data', {'data': 5, 'metadata': 1}), ('display_data', {'data': {'text/plain': None}}),\n"
        "    ('error', {'ename': 1, 'evalue': None, 'traceback': 7}), ('status', {'execution_state': []}),\n"
        "    ('execute_result', {'data': [], 'metadata': {}, 'execution_count': 'x'})):\n"
        "    k.session.send(k.iopub_socket, kind, content, parent=k.get_parent())\n"
        "k.session.send(k.iopub_socket, 'stream', {'name': 'stdout', 'text': 'end'}, parent=k.get_parent())",
        "ok", "end", 20),
    "no JSON in a message": (
        "k = get_ipython().kernel; s = k.session\n"
        "h, p = s.pack(s.msg_header('stream')), s.pack(k.get_parent()['header'])\n"
        "for content in (b'{', b'\\xff', b'[]', b'5', b''): k.iopub_socket.send_multipart(\n"
        "    [b'stream', b'<IDS|MSG>', b'', h, p, b'{}', content])\n"
        "h = s.pack(s.msg_header('status'))\n"
        "for content in (b'{', b'\\xff', b'[]', b'5', b''): k.iopub_socket.send_multipart(\n"
        "    [b'status', b'<IDS|MSG>', b'', h, p, b'{}', content])\n"
        "k.iopub_socket.send_multipart([b'x']); print('end')", "ok", "end", 20),
}  # fmt: skip


@pytest.mark.parametrize(("code", "status", "says", "timeout_s"), SURVIVED.values(), ids=SURVIVED)
async def test_the_kernel_stays_usable(code: str, status: str, says: str, timeout_s: float):
    async with running() as kernel:
        await run(kernel, "kept = 'kept'")
        result = await run(kernel, code, timeout_s)
        assert (result.status, result.alive) == (status, True), result.text[-2000:]
        assert says in result.text
        assert len(result.text) < SETTINGS.limits.max_chars + 1000
        assert sum(len(str(output)) for output in result.outputs) < 1.5 * SETTINGS.max_output_bytes
        assert await is_usable(kernel)


# Code that loses the kernel: the status, what the model reads, and seconds before the interrupt.
LOST: dict[str, tuple[str, str, str, float]] = {
    "catching every interrupt": (
        "import time\nwhile True:\n    try: time.sleep(1)\n    except BaseException: pass", "timeout", "killed", 0.5),
    "ignoring SIGINT": (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(1000)",
        "timeout", "killed", 0.5),
    "stopping itself": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "timeout", "killed", 0.5),
    "os._exit": ("import os; os._exit(3)", "kernel_died", "exit code 3", 20),
    "a segmentation fault": ("import ctypes; ctypes.string_at(0)", "kernel_died", "SIGSEGV", 20),
    "SIGKILL": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "kernel_died", "SIGKILL", 20),
    "closing all fds": ("import os; os.closerange(0, 1000)", "timeout|kernel_died", "", 1),
    "an exception of 40 MB": ("raise ValueError('x' * 4 * 10**7)", "timeout", "killed", 2),
}  # fmt: skip


@pytest.mark.parametrize(("code", "status", "says", "timeout_s"), LOST.values(), ids=LOST)
async def test_the_kernel_is_lost(code: str, status: str, says: str, timeout_s: float):
    async with running() as kernel:
        started = time.monotonic()
        result = await run(kernel, code, timeout_s)
        assert result.status in status.split("|") and not result.alive and says in result.text
        assert time.monotonic() - started < 10
        after = await run(kernel, "1")
        assert (after.status, after.alive) == ("kernel_died", False) and "not running" in after.text


async def test_output_before_the_death_is_kept():
    async with running() as kernel:
        result = await run(
            kernel, "import os, sys\nprint('before'); sys.stdout.flush()\nimport time; time.sleep(0.5); os._exit(1)"
        )
        assert result.status == "kernel_died" and result.text.startswith("before\n")


async def test_the_last_of_many_messages_is_kept():
    async with running() as kernel:
        result = await run(kernel, "for i in range(2000): print(i)\n1 / 0")
        assert "1999" in result.text and result.text.endswith("ZeroDivisionError: division by zero")


DAEMONS = {
    "a child": "import subprocess; child = subprocess.Popen(['sleep', '1000'])",
    "a child in a session of its own": "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)",
    "a child without the environment": (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '1000'], start_new_session=True, env={'PATH': '/bin:/usr/bin'})"),
    "a daemon": (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)"),
    "a daemon that ignores signals": (
        "import os, subprocess\nsubprocess.Popen('trap \"\" INT TERM HUP; sleep 1000 & sleep 1000', shell=True, "
        "start_new_session=True)"),
}  # fmt: skip


@pytest.mark.parametrize("code", DAEMONS.values(), ids=DAEMONS)
@pytest.mark.parametrize("dies", [False, True])
async def test_children_end_with_the_kernel(code: str, dies: bool):
    async with running() as kernel:
        before = {process.pid for process in psutil.process_iter()}
        assert (await run(kernel, code)).status == "ok"
        children = [
            process
            for process in psutil.process_iter()
            if process.pid not in before and process.name() in ("sleep", "sh", Path(sys.executable).name, "python")
        ]
        assert children
        if dies and "env=" not in code:  # an orphan without the mark cannot be told from anyone's process
            await run(kernel, "import os; os._exit(0)")
    assert eventually(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


async def test_5_mb_of_lines_are_too_slow_to_compile():
    async with running() as kernel:
        result = await run(kernel, "x = 1\n" * 850_000, 1.0)
        assert result.status == "timeout" and result.duration_s < 5


async def test_threads_that_go_on_printing():
    async with running() as kernel:
        started = "import threading, time\ndef go():\n    while True: print('noise'); time.sleep(0.001)\n"
        assert (await run(kernel, f"{started}threading.Thread(target=go, daemon=True).start()")).status == "ok"
        await asyncio.sleep(0.5)
        for _ in range(3):
            result = await run(kernel, "time.sleep(0.1); print('mine', flush=True)")
            assert result.status == "ok" and "mine" in result.text
        assert result.duration_s < 2


async def test_memory_is_capped():
    async with running(KernelSettings(max_memory_bytes=1024**3)) as kernel:
        await run(kernel, "kept = 'kept'")
        result = await run(kernel, "hoard = []\nwhile True: hoard.append(bytearray(50_000_000))")
        assert result.status == "out_of_memory" and "MemoryError" in result.text and result.alive
        await run(kernel, "del hoard")
        assert await is_usable(kernel)


async def test_two_kernels_do_not_see_each_other():
    async with running() as one, running() as other:
        results = await asyncio.gather(
            run(one, "x = 'one'; open('file', 'w').write(x); print(x)"),
            run(other, "x = 'other'; open('file', 'w').write(x); print(x)"),
        )
        assert [result.text for result in results] == ["one", "other"]
        assert (await run(one, "print(x, open('file').read())")).text == "one one"
        assert (await run(other, "import os; os._exit(0)")).status == "kernel_died"
        assert (await run(one, "print(x)")).text == "one"


async def test_files_are_copies(tmp_path: Path):
    table = tmp_path / "table.csv"
    table.write_text("a\n1\n")
    async with running(**{"table.csv": table, "deep__größe.csv": table}) as kernel:
        assert (
            await run(kernel, "print(open('data/table.csv').read(), open('data/deep/größe.csv').read())")
        ).status == "ok"
        assert (await run(kernel, "open('data/table.csv', 'w').write('gone')")).status == "ok"
    assert table.read_text() == "a\n1\n"


async def test_the_trainers_secrets_and_home_are_not_passed_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_API_KEY", "secret")
    async with running() as kernel:
        result = await run(
            kernel, "import os; print('SOME_API_KEY' in os.environ, os.path.expanduser('~'), os.environ['TMPDIR'])"
        )
        shown, home, tmp = result.text.split()
        assert shown == "False" and home != str(Path.home()) and Path(home).parent == Path(tmp).parent


async def test_outputs_of_every_kind():
    async with running() as kernel:
        result = await run(
            kernel, "import sys\nprint('out', flush=True); print('err', file=sys.stderr)\ndisplay({'a': 1})\n5"
        )
        assert {output["output_type"] for output in result.outputs} == {"stream", "display_data", "execute_result"}
        assert result.text.split("\n") == ["out", "err", "{'a': 1}", "5"]
        cleared = await run(
            kernel, "from IPython.display import clear_output\nprint('a')\nclear_output(wait=True)\nprint('b')"
        )
        assert cleared.text == "b"


async def test_interrupt_from_outside():
    async with running() as kernel:
        await kernel.interrupt()  # nothing runs: nothing happens
        cell = asyncio.ensure_future(run(kernel, "kept = 'kept'\nimport time; time.sleep(100)"))
        await asyncio.sleep(0.5)
        await kernel.interrupt()
        result = await asyncio.wait_for(cell, 5)
        assert result.status == "code_error" and "KeyboardInterrupt" in result.text
        assert await is_usable(kernel)


async def test_a_cancelled_cell_can_be_cleaned_up():
    async with running() as kernel:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run(kernel, "import time; time.sleep(100)"), 0.5)


class TestStart:
    async def fails(self, settings: KernelSettings, **files: Path) -> str:
        started = time.monotonic()
        kernel = LocalKernel(settings)
        with pytest.raises(InfrastructureError) as caught:
            await kernel.start(files)
        assert time.monotonic() - started < 10
        await kernel.close()
        return str(caught.value)

    async def test_a_python_that_does_not_exist(self):
        assert "/no/such/python" in await self.fails(KernelSettings(python="/no/such/python"))

    async def test_a_python_that_is_no_program(self, tmp_path: Path):
        (tmp_path / "python").write_text("text")
        assert str(tmp_path / "python") in await self.fails(KernelSettings(python=str(tmp_path / "python")))

    async def test_a_python_without_ipykernel(self, tmp_path: Path):
        venv.create(tmp_path / "bare", with_pip=False)
        message = await self.fails(KernelSettings(python=str(tmp_path / "bare" / "bin" / "python")))
        assert "No module named ipykernel" in message and "exit code 1" in message

    async def test_a_kernel_that_does_not_answer(self, tmp_path: Path):
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\necho I sleep >&2\nexec sleep 100\n")
        python.chmod(0o700)
        message = await self.fails(KernelSettings(python=str(python), start_timeout_s=0.5))
        assert "did not answer within 0.5 s" in message and "I sleep" in message

    async def test_a_table_that_is_missing(self, tmp_path: Path):
        assert "gone.csv" in await self.fails(SETTINGS, table=tmp_path / "gone.csv")

    async def test_a_start_that_is_cancelled(self):
        kernel = LocalKernel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(kernel.start({}), 0.1)
        assert not kernel_processes()

    async def test_a_long_temporary_folder(self, no_leaks: Path, monkeypatch: pytest.MonkeyPatch):
        deep = no_leaks / ("d" * 100)
        deep.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(deep))
        async with running() as kernel:
            assert (await run(kernel, "print(1)")).text == "1"
        deep.rmdir()


async def test_closing_twice_and_before_the_start():
    kernel = LocalKernel()
    await kernel.close()
    await kernel.start({})
    await kernel.close()
    await kernel.close()
    assert kernel.pid is None and (await run(kernel, "1")).status == "kernel_died"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_folders_without_permissions_are_removed_and_links_not_followed(no_leaks: Path):
    is_root = os.geteuid() == 0
    folder = no_leaks / "folder"
    outside = no_leaks / "outside"
    for path in (folder, outside):
        path.mkdir()
    if is_root:  # whom no permission stops
        for path in (no_leaks, folder, outside):
            os.chown(path, 65534, 65534)
        os.seteuid(65534)
    try:
        nested = folder.joinpath(*"abcdefgh")
        nested.mkdir(parents=True)
        (nested / "file").write_text("x")
        (folder / "a" / "link").symlink_to(outside)
        outside.chmod(0o555)
        for path in (nested, *nested.parents[:8]):
            path.chmod(0)
        _remove(folder)
    finally:
        if is_root:
            os.seteuid(0)
    assert not folder.exists() and outside.stat().st_mode & 0o777 == 0o555
    outside.rmdir()
