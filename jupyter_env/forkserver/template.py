"""Setup code, run once in a template for all kernels that are forked from it."""

from __future__ import annotations

from typing import Any


def run_setup(app: Any, setup: str) -> None:
    """Run it in the namespace that kernels start with.

    Raises:
        RuntimeError: it fails; the message holds the traceback.
    """
    shell = app.shell
    result = shell.run_cell(setup, store_history=False)
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        kind = (type(error), error, error.__traceback__)
        lines = shell.InteractiveTB.structured_traceback(*kind)
        raise RuntimeError("the setup code failed:\n" + "\n".join(lines))
