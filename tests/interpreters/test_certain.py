"""What is said to be certain of cells, against what kernels have made of the cells of real notebooks."""

import json
from pathlib import Path
from typing import Any

import pytest

from jupyter_env.interpreters import render_outputs
from jupyter_env.interpreters.certain import Certain, certainly
from jupyter_env.interpreters.simulated_reply import read_reply

NOTEBOOKS = Path(__file__).parents[2].parent / "shared" / "data" / "notebooks"


def executed(path: Path) -> list[dict[str, Any]]:
    """The cells of a Python 3 notebook that was run from its first cell without a gap; none of any other."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and cell.get("execution_count")]
    except (ValueError, KeyError, TypeError):
        return []
    cells.sort(key=lambda cell: cell["execution_count"])
    in_order = [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    return cells if in_order and "python3" in json.dumps(notebook.get("metadata")) else []


@pytest.mark.parametrize(
    "past",
    ["!wget http://x/gone.csv", "%run setup.py", "%%bash\nmake gone.csv", "df.to_csv(name)", "open(p, 'w')", "exec(x)"],
)
def test_what_earlier_cells_did_unseen_makes_nothing_certain(past: str) -> None:
    assert certainly("import pandas as pd\npd.read_csv('gone.csv')", [past], []).error is None


@pytest.mark.parametrize(
    "past", ["%run setup.py", "from numpy import *", "%%timeit\nx = 1", "globals()['x'] = 1", "%%time\nx = 1"]
)
def test_names_that_may_have_been_bound_unseen(past: str) -> None:
    assert certainly("print(x)", [past], []).error is None


@pytest.mark.parametrize(
    "past",
    [
        "%matplotlib inline",
        "df = df.copy()\ndf['a']",
        "df.rename(columns={})\npd.to_datetime(df['x'])",
        "%%time\ny = 1",
    ],
)
def test_common_cells_leave_certain_what_is(past: str) -> None:
    code = "import pandas as pd\npd.read_csv('gone.csv')"
    assert str(certainly(code, [past], []).error).startswith("FileNotFoundError")
    assert certainly("print(z)", [past], []).error == "NameError: name 'z' is not defined"


@pytest.mark.skipif(not NOTEBOOKS.is_dir(), reason="the real notebooks are not here")
def test_real_cells_that_ran_are_never_said_to_fail_and_their_outputs_are_valid_replies() -> None:
    checked = 0
    for path in sorted(NOTEBOOKS.rglob("*.ipynb")):
        past: list[str] = []
        for cell in executed(path):
            code = "".join(cell["source"])
            failed = any(output["output_type"] == "error" for output in cell["outputs"])
            certain = certainly(code, past, [])
            # Which files there were is not known here.
            if certain.error is not None and not certain.error.startswith("FileNotFoundError"):
                assert failed, (path.name, certain.error, code)
            status = "code_error" if failed else "ok"
            text = f'<output_cell status="{status}">\n{render_outputs(cell["outputs"])}\n</output_cell>'
            reply = read_reply(text, Certain(), frozenset(), cut=False)
            assert reply.status == status
            if failed:
                assert reply.outputs[-1]["ename"] == cell["outputs"][-1]["ename"]
            past.append(code)
            checked += 1
    assert checked > 1_000
