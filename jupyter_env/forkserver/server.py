"""The server process: imports the preloads, builds a kernel, forks one for each request.

Protocol, JSON over SOCK_SEQPACKET. On the control socket: `{"spawn": spec}` with one descriptor, the kernel's own
connection. On that connection, to the client: `{"pid": n}` with a pidfd, then `{"ready": true}`, or
`{"error": text}`; last `{"exit": code}`. The client's end closed means: kill it. The control socket closed means:
the client is gone, end.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from typing import Any

from . import isolation


def main(control_fd: int, settings: dict[str, Any]) -> None:
    """Serve until the control socket closes."""
    isolation.die_with_parent()
    control = socket.socket(fileno=control_fd)
    isolated = bool(settings["isolated"])
    if isolated and os.getuid() != 0:
        isolation.become_root_of_user_namespace()
    failed = _preload(settings["preload"])
    # As if not installed: no one debugs an agent, and it costs 20 MB a kernel.
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    from .kernel import build  # after the preloads: matplotlib must be there when the shell is built

    app = build([])
    _warm_up(app)
    _assert_single_thread()
    gc.collect()
    gc.freeze()  # collections in children must not touch, and so copy, the shared pages
    control.send(json.dumps({"ready": os.getpid(), "not_preloaded": failed}).encode())
    Server(control, app, isolated).run()


def _preload(names: list[str]) -> dict[str, str]:
    """Import them; those that cannot be are named with their error, since a kernel works without."""
    failed = {}
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return failed


def _warm_up(app: Any) -> None:
    """Touch what first use would import in every child."""

    shell = app.shell
    with contextlib.suppress(Exception):
        try:
            raise ValueError("warm-up")
        except ValueError:
            shell.InteractiveTB.structured_traceback(*sys.exc_info())
    if (pandas := sys.modules.get("pandas")) is not None:
        shell.display_formatter.format(pandas.DataFrame({"a": [1.0]}))


def _assert_single_thread() -> None:
    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        raise RuntimeError(
            f"the server has {len(threads)} threads and cannot fork safely; leave out the preload that starts them"
        )


class Server:
    """The loop: requests, forks, ends of kernels, clients that went away."""

    def __init__(self, control: socket.socket, app: Any, isolated: bool) -> None:
        self._control = control
        self._app = app
        self._isolated = isolated
        self._own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._kernels: dict[socket.socket, tuple[int, int]] = {}

    def run(self) -> None:
        """Until the client goes away."""
        self._selector.register(self._control, selectors.EVENT_READ, self._take_request)
        while True:
            for key, _ in self._selector.select():
                if key.data(key.fileobj) == "end":
                    return

    def _take_request(self, control: socket.socket) -> str | None:
        message, ancillary, _, _ = control.recvmsg(1 << 20, socket.CMSG_SPACE(array.array("i").itemsize))
        if not message:
            return "end"
        fds = array.array("i")
        for _level, _kind, data in ancillary:
            fds.frombytes(data[: fds.itemsize])
        connection = socket.socket(fileno=fds[0])
        try:
            self._spawn(json.loads(message)["spawn"], connection)
        except OSError as error:
            _tell(connection, {"error": f"the kernel could not be forked: {error}"})
            connection.close()
        return None

    def _spawn(self, spec: dict[str, Any], connection: socket.socket) -> None:
        if self._isolated:
            # The pid namespace is for children only; forking into it here saves the child a second fork.
            isolation.unshare(isolation.NEWPID)
        pid = os.fork()
        if pid == 0:
            _run_child(self, spec, connection)
        if self._isolated:
            isolation.setns(self._own_pid_namespace, isolation.NEWPID)
        pidfd = os.pidfd_open(pid)
        self._kernels[connection] = (pid, pidfd)
        payload = json.dumps({"pid": pid}).encode()
        connection.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))])
        self._selector.register(connection, selectors.EVENT_READ, self._client_gone)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda _: self._reap(connection))

    def _client_gone(self, connection: socket.socket) -> None:
        """End of file on a kernel's connection: its client wants it killed."""
        _pid, pidfd = self._kernels[connection]
        self._selector.unregister(connection)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _reap(self, connection: socket.socket) -> None:
        pid, pidfd = self._kernels.pop(connection)
        _, status = os.waitpid(pid, 0)
        self._selector.unregister(pidfd)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        os.close(pidfd)
        _tell(connection, {"exit": os.waitstatus_to_exitcode(status)})
        connection.close()

    def forget(self) -> None:
        """In a child: close everything that is the server's."""
        self._selector.close()
        for connection, (_pid, pidfd) in self._kernels.items():
            connection.close()
            os.close(pidfd)
        self._control.close()
        os.close(self._own_pid_namespace)


def _tell(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the client is gone
        connection.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)


def _run_child(server: Server, spec: dict[str, Any], connection: socket.socket) -> None:
    """From fork to the end of the kernel; never returns."""
    try:
        os.setsid()
        isolation.die_with_parent()
        server.forget()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if server._isolated:
            isolation.enter(spec["isolation"])
        else:
            os.chdir(spec["cwd"])
        os.environ.clear()
        os.environ.update(spec["env"])
        app, serve = server._app, sys.modules[f"{__package__}.kernel"].serve
        for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
            del sys.modules[name]
        del server

        def ready() -> None:
            _tell(connection, {"ready": True})

        serve(app, spec["connection_file"], ready)
    except BaseException:
        _tell(connection, {"error": traceback.format_exc()[-4000:]})
    finally:
        os._exit(0)
