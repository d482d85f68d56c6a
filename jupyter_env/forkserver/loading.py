"""How a process loads this package without the one around it, which is not to be in a kernel's memory."""

from __future__ import annotations

from pathlib import Path

FOLDER = str(Path(__file__).parent)

_CODE = """
import importlib.util, sys
sys.path.remove("")
spec = importlib.util.spec_from_file_location(
    "forkserver", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]]
)
sys.modules["forkserver"] = importlib.util.module_from_spec(spec)
importlib.import_module("forkserver." + sys.argv[2]).main(*sys.argv[3:])
"""


def command(python: str, module: str, *arguments: str) -> list[str]:
    """The command line that calls `main` of a module of this package with the arguments."""
    return [python, "-c", _CODE, FOLDER, module, *arguments]
