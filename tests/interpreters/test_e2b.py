"""E2B's interpreter: the real SDK against a local server with real kernels. Nothing here reaches the hosted service."""

import asyncio
from pathlib import Path

import pytest
from e2b_server import E2BServer

from jupyter_env import JupyterQAEnv, TaskPool
from jupyter_env.interpreters import BranchError, InfrastructureError
from jupyter_env.interpreters.e2b import E2BInterpreter, E2BSettings


def interpreter(server: E2BServer, **settings: object) -> E2BInterpreter:
    return E2BInterpreter(E2BSettings(options=server.options, **settings))


async def test_a_sandbox_s_life(data_root: Path):
    with E2BServer() as server:
        sandbox = interpreter(server, lifetime_s=1234)
        await sandbox.start(
            {"penguins.csv": data_root / "penguins.csv", "deep/größe.csv": data_root / "deep/größe.csv"}
        )
        asked = next(body for kind, _, body in server.requests if kind == "CREATE")
        assert (asked["timeout"], asked["allow_internet_access"]) == (1234, False)
        assert [path for method, path, _ in server.requests if method == "POST"].count("/files") == 2
        result = await sandbox.run_cell("import pandas as pd\ndf = pd.read_csv('data/penguins.csv')\ndf", 60)
        assert result.status == "ok" and "Gentoo  5000" in result.text
        assert result.outputs[0]["output_type"] == "execute_result" and "text/html" in result.outputs[0]["data"]
        result = await sandbox.run_cell("print(len(df))\nprint(open('data/deep/größe.csv').read())\ndf['no']", 60)
        assert result.status == "code_error" and result.text.startswith("2\ngröße") and result.alive
        assert result.text.endswith("KeyError: 'no'") and result.outputs[-1]["ename"] == "KeyError"
        assert (
            await sandbox.run_cell("import matplotlib.pyplot as plt\nplt.plot([1])\nplt.show()", 60)
        ).text.startswith("[image/png ")
        assert (await sandbox.run_cell("x = bytearray(10**15)", 60)).status == "out_of_memory"
        assert 0 < result.duration_s < 30
        with pytest.raises(BranchError):
            await sandbox.branch()
        await sandbox.close()
        await sandbox.close()
        assert server.sandboxes == {} and [method for method, *_ in server.requests].count("DELETE") == 1
        assert (await sandbox.run_cell("1", 60)).alive is False


async def test_a_cell_past_its_limit_is_interrupted_and_keeps_its_variables():
    with E2BServer() as server:
        sandbox = interpreter(server)
        await sandbox.start({})
        result = await sandbox.run_cell("x = 7\nimport time\ntime.sleep(50)", 1.0)
        assert result.status == "timeout" and result.alive and "are kept" in result.text and result.duration_s < 10
        assert (await sandbox.run_cell("print(x)", 60)).text == "7"
        running = asyncio.ensure_future(sandbox.run_cell("time.sleep(50)", 60))
        await asyncio.sleep(0.5)
        await sandbox.interrupt()
        assert (await running).text == "KeyboardInterrupt"
        assert (await sandbox.run_cell("print(x)", 60)).text == "7"
        await sandbox.close()


async def test_a_kernel_that_does_not_react_is_lost():
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    with E2BServer() as server:
        sandbox = interpreter(server, interrupt_grace_s=0.5)
        await sandbox.start({})
        result = await sandbox.run_cell(code, 0.5)
        assert (result.status, result.alive) == ("timeout", False)
        assert (await sandbox.run_cell("1", 60)).status == "kernel_died"
        await sandbox.close()
        assert server.sandboxes == {}


async def test_a_kernel_that_dies_and_a_sandbox_that_is_gone():
    with E2BServer() as server:
        sandbox = interpreter(server)
        await sandbox.start({})
        result = await sandbox.run_cell("import os; os._exit(3)", 60)
        assert (result.status, result.alive) == ("kernel_died", False)
        await sandbox.close()
        sandbox = interpreter(server)
        await sandbox.start({})
        server.kill(next(iter(server.sandboxes)))
        result = await sandbox.run_cell("print(1)", 60)
        assert (result.status, result.alive) == ("infrastructure_error", False)
        await sandbox.close()


async def test_output_without_end_is_cut():
    with E2BServer() as server:
        sandbox = interpreter(server, max_output_bytes=10_000)
        await sandbox.start({})
        result = await sandbox.run_cell(
            "import sys\nfor n in range(20):\n    print('x' * 1000, file=[sys.stdout, sys.stderr][n % 2])", 60
        )
        assert result.status == "ok" and "bytes more were dropped" in result.text
        assert sum(len(output["text"]) for output in result.outputs) <= 10_000
        await sandbox.close()


@pytest.mark.parametrize("refuse", [{"POST /v2/sandboxes": 401}, {"POST /v2/sandboxes": 500}, {"POST /files": 507}])
async def test_a_start_that_fails_leaves_no_sandbox(refuse: dict[str, int], data_root: Path):
    with E2BServer(refuse) as server:
        sandbox = E2BInterpreter(E2BSettings(options={**server.options, "retries": 0}))
        with pytest.raises(InfrastructureError, match="E2B sandbox could not be started"):
            await sandbox.start({"penguins.csv": data_root / "penguins.csv"})
        assert server.sandboxes == {}


async def test_a_start_that_is_cancelled_leaves_no_sandbox():
    with E2BServer() as server:
        server.create_delay_s = 1.0
        sandbox = interpreter(server)
        starting = asyncio.ensure_future(sandbox.start({}))
        await asyncio.sleep(0.3)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert server.sandboxes == {} and any(method == "DELETE" for method, *_ in server.requests)


async def test_a_start_in_vain_ends():
    with E2BServer() as server:
        server.create_delay_s = 3.0
        sandbox = interpreter(server, start_timeout_s=0.3)
        with pytest.raises(InfrastructureError, match=r"not ready within 0\.3 s"):
            await sandbox.start({})


def test_an_episode_in_a_sandbox(pool: TaskPool):
    with E2BServer() as server:
        env = JupyterQAEnv(pool, make_interpreter=lambda: interpreter(server))
        env.reset(options={"task_id": "rows"})
        code = "print(len(open('data/penguins.csv').readlines()) - 1)"
        call = '<tool_call>\n{"name": "execute_code", "arguments": {"code": "CODE"}}\n</tool_call>'.replace(
            "CODE", code
        )
        observation, *_ = env.step(call)
        assert observation == "2"
        assert env.step("final_answer: 2")[1] == 1.0
        env.close()
        assert server.sandboxes == {}
        assert all("e2b_0" not in str(cell) for cell in env.record.cells)
