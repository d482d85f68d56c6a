"""From fork to the end of a kernel: what the forked process does before any code of an agent runs in it."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from . import isolation, syscalls
from .branching import Brancher
from .messages import tell


def run_kernel(
    app: Any,
    spec: dict[str, Any],
    connection: socket.socket,
    listeners: list[int],
    folder: int | None,
    line: socket.socket | None,
) -> NoReturn:
    """Become the kernel that the spec describes.

    Args:
        app: the server's prebuilt IPKernelApp.
        spec: `connection`, `env`, `lean`, `forget` (modules), and either `isolation` (see `isolation.enter`) or `cwd`.
        connection: to the kernel's client, which is told `ready` or `error`; closed before any code of an agent runs.
        listeners: see `kernel.serve`.
        folder: see `view.enter`.
        line: by which the server asks for branches, if it may.
    """
    try:
        os.setsid()
        syscalls.set_name("jupyter-kernel")
        syscalls.die_with_parent()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if "isolation" in spec:
            isolation.enter(spec["isolation"], folder)
        else:
            os.chdir(spec["cwd"])
        os.environ.clear()
        os.environ.update(spec["env"])
        _reseed()
        kernel = sys.modules[f"{__package__}.kernel"]
        for name in spec["forget"]:  # the kernel's modules are those of any kernel
            sys.modules.pop(name, None)
        brancher = Brancher(line, lambda *others: kernel.serve_branch(app, *others)) if line is not None else None

        def ready() -> None:
            tell(connection, {"ready": True})
            connection.close()
            if brancher is not None:
                brancher.listen()

        kernel.serve(app, spec["connection"], listeners, spec["lean"], ready)
    except BaseException:
        tell(connection, {"error": traceback.format_exc()[-4000:]})
    finally:
        os._exit(0)


def own_modules() -> list[str]:
    """This package's, loaded so far. Asked before forking: reading all names would copy a megabyte of shared pages."""
    return [name for name in sys.modules if name.partition(".")[0] == __package__]


def _reseed() -> None:
    """Siblings must not draw the same numbers."""
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(int.from_bytes(os.urandom(4), "little"))
