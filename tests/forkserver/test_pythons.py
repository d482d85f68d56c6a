"""Kernels of other Pythons and of ipykernel 6; their environments are made by `make test-pythons`."""

from pathlib import Path

import pytest

from jupyter_env.forkserver.detect import features
from jupyter_env.interpreters import IsolatedKernel, KernelSettings, LocalKernel

missing = [feature for feature in features() if feature.required and feature.problem]
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.pythons
@pytest.mark.skipif(bool(missing), reason=f"this host does not isolate kernels: {missing}")
@pytest.mark.parametrize("name", ["3.12", "3.13", "ipykernel6"])
@pytest.mark.parametrize("kind", [IsolatedKernel, LocalKernel])
async def test_kernels_of_another_environment(name: str, kind: type, tmp_path: Path):
    python = ROOT / f".venv-{name}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} is not there: make test-pythons")
    (tmp_path / "t.csv").write_text("a\n1\n")
    settings = KernelSettings(python=str(python), branchable=kind is IsolatedKernel, parked=0)
    kernel = kind(settings)
    await kernel.start({"t.csv": tmp_path / "t.csv"})
    try:
        code = (
            "import sys, ipykernel, pandas as pd\n"
            "print(*sys.version_info[:2], ipykernel.__version__, pd.read_csv('data/t.csv').a[0])"
        )
        python_version, *rest = (await kernel.run_cell(code, 60)).text.split()
        assert python_version == "3"
        wanted = {"3.12": ("12", "7"), "3.13": ("13", "7"), "ipykernel6": (rest[0], "6")}[name]
        assert (rest[0], rest[1].split(".")[0]) == wanted
        assert rest[2] == "1"
        plot = await kernel.run_cell("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n1 / 0", 60)
        assert plot.status == "code_error" and "image/png" in plot.text and "ZeroDivisionError" in plot.text
        assert (await kernel.run_cell("while True: pass", 1)).status == "timeout"
        if kind is IsolatedKernel:
            branch = await kernel.branch()
            assert (await branch.run_cell("print(pd.__name__)\n!echo shell", 60)).text == "pandas\nshell"
            await branch.close()
        assert (await kernel.run_cell("import os; os._exit(1)", 60)).status == "kernel_died"
    finally:
        await kernel.close()
