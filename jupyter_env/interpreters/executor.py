"""A local kernel as a plain function, for code that is the project's own: generators and checks of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from jupyter_env.blocking import LoopThread
from jupyter_env.interpreters.base import CellResult
from jupyter_env.interpreters.isolated import make_kernel
from jupyter_env.interpreters.settings import KernelSettings

_MAX_PRINTED_BYTES = 256 * 1024**2


@contextmanager
def kernel_executor(
    files: Mapping[str, Path],
    timeout_s: float = 600.0,
    settings: KernelSettings = KernelSettings(),  # noqa: B008
) -> Iterator[Callable[[str], str]]:
    """A function that runs code in one kernel, with the files at `data/`, and returns what it printed.

    The function raises RuntimeError, with the cell's text, when the code does not end well in `timeout_s`.

    Raises:
        InfrastructureError: the kernel does not start.
    """
    kernel = make_kernel(msgspec.structs.replace(settings, max_output_bytes=_MAX_PRINTED_BYTES))
    loop = LoopThread()

    def execute(code: str) -> str:
        result = loop.run(kernel.run_cell(code, timeout_s))
        if result.status != "ok":
            raise RuntimeError(f"the code ended with {result.status}:\n{result.text}")
        return printed(result)

    try:
        loop.run(kernel.start(files))
        yield execute
    finally:
        loop.run(kernel.close())
        loop.close()


def printed(result: CellResult) -> str:
    """What a cell wrote to stdout."""
    return "".join(output["text"] for output in result.outputs if output.get("name") == "stdout")
