"""An ipykernel that is built once in the server, without sockets or threads, and attached to them in each child.

ipykernel's internals are relied on here and nowhere else; the supported range is pinned in pyproject.toml.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from IPython.core.application import BaseIPythonApplication


class PrebuiltKernel(IPythonKernel):
    """`instance` builds it in the server; called again by the app in a child, it attaches the child's sockets."""

    @classmethod
    def instance(cls, *args: Any, **parts: Any) -> PrebuiltKernel:
        """The kernel of this process, attached to the parts if it was built before."""
        if not cls.initialized():
            built: PrebuiltKernel = super().instance(*args, **parts)
            return built
        kernel: PrebuiltKernel = super().instance()
        kernel._attach(parts)
        return kernel

    def _attach(self, parts: dict[str, Any]) -> None:
        for name, part in parts.items():
            if name not in ("parent", "user_ns", "profile_dir"):
                setattr(self, name, part)
        self._stdout, self._stderr = sys.stdout, sys.stderr
        self._main_asyncio_lock = asyncio.Lock()
        shell: Any = self.shell
        shell.displayhook.session = shell.display_pub.session = self.session
        shell.displayhook.pub_socket = shell.display_pub.pub_socket = self.iopub_socket


def build(arguments: list[str]) -> IPKernelApp:
    """In the server: the app with its kernel and shell, as far as they go without sockets or threads."""
    app = IPKernelApp.instance(kernel_class=PrebuiltKernel)
    BaseIPythonApplication.initialize(app, ["--HistoryManager.enabled=False", *arguments])
    app.parent_handle = 1  # there is one, so no hints about how to connect are printed
    app.init_pdb()
    app.kernel = PrebuiltKernel.instance(parent=app, profile_dir=app.profile_dir, log=app.log)
    app.init_path()
    app.init_shell()
    app.init_gui_pylab()
    app.init_extensions()
    app.init_code()
    return app


def serve(app: IPKernelApp, connection_file: str, ready: Any) -> None:
    """In the child: sockets, threads, the loop. `ready` is called when the sockets are bound."""
    _reseed()
    app.connection_file = connection_file
    app.init_connection_file()
    app.init_sockets()
    app.init_heartbeat()
    app.log_connection_info()
    app.init_io()
    app.init_signal()
    app.init_kernel()
    app.init_shell()
    app.poller = None
    ready()
    app.start()


def _reseed() -> None:
    """Siblings must not draw the same numbers."""
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(int.from_bytes(os.urandom(4), "little"))
