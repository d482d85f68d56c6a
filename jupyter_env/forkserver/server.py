"""The server process: imports the preloads, builds a kernel, forks one for each request.

Protocol, JSON over SOCK_SEQPACKET. On the control socket: `{"spawn": spec}` with descriptors, the kernel's own
connection and its listening sockets. On that connection, to the client: `{"forked": true}` with a pidfd, then
`{"ready": true}` and, if there are control groups, `{"capped": true}`, or `{"error": text}`; last `{"exit": code,
"out_of_memory": bool}`. To the server: `{"attach": {name: host path}}`, answered with `{"attached": true}`, and
`{"branch": spec}` with descriptors as for a spawn. The client's end closed means: kill it. Also on the control socket:
`{"template": {"files": ..., "setup": code}}` with the control socket of the server that is to come of it. A control
socket that is closed means: the client is gone, end.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import re
import selectors
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import branching, syscalls
from .cgroups import Keeper
from .child import own_modules, run_kernel
from .messages import receive, tell
from .pidfd import pid_of
from .template import run_setup
from .threads import assert_single_thread
from .view import Views


@dataclass
class _Kernel:
    """One that was forked and not yet reaped."""

    number: int
    """In the order of forking: process ids come again."""
    pid: int | None
    """None for a branch, whose parent is another."""
    pidfd: int
    connection: socket.socket
    spec: dict[str, Any]
    """What it was asked for with."""
    line: socket.socket | None
    """To the kernel itself, for branches."""
    family: _Family | None


@dataclass
class _Family:
    """A kernel that may be branched, and its branches, in one pid namespace."""

    first_process: int
    members: set[int]
    """Numbers of kernels."""


class Server:
    """The loop: requests, forks, ends of kernels, clients that went away."""

    def __init__(self, control: socket.socket, app: Any, views: Views | None, keeper: Keeper | None) -> None:
        self._control = control
        self._app = app
        self._views = views
        self._keeper = keeper
        self._own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._running = True
        self._kernels: dict[int, _Kernel] = {}
        self._own_modules = own_modules()
        self._numbers = itertools.count()
        self._ended: dict[int, tuple[_Kernel, int | None]] = {}

    def run(self) -> None:
        """Until the client goes away."""
        self._selector.register(self._control, selectors.EVENT_READ, lambda: self._take_request())
        if self._keeper is not None:
            self._selector.register(self._keeper.connection, selectors.EVENT_READ, lambda: self._take_kept())
        while self._running:
            # One at a time: what it leads to may be the end of what the others are about.
            for key, _ in self._selector.select()[:1]:
                key.data()

    def _take_request(self) -> None:
        message, fds = receive(self._control)
        if not message:
            self._running = False
            return
        request = json.loads(message)
        connection, listeners = socket.socket(fileno=fds[0]), fds[1:]
        try:
            if "template" in request:
                self._make_template(request["template"], connection)
            else:
                self._spawn(request["spawn"], connection, listeners)
        except OSError as error:
            tell(connection, {"error": f"the server could not fork: {error}", "errno": error.errno})
            connection.close()
        finally:
            for fd in listeners:
                os.close(fd)

    def _spawn(self, spec: dict[str, Any], connection: socket.socket, listeners: list[int]) -> None:
        folder = None
        if self._views is not None:
            if spec["isolation"]["folder"] is not None:
                folder = self._views.host_folder(spec["isolation"]["folder"])
            # The pid namespace is for children only; forking into it here saves the child a second fork.
            syscalls.unshare(syscalls.NEWPID)
        family = line = line_end = None
        try:
            if spec.get("isolation", {}).get("branchable"):
                first_process, first_pidfd = _forked(branching.be_first_process)
                os.close(first_pidfd)
                family = _Family(first_process, set())
                line, line_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid, pidfd = _forked(lambda: self._become_kernel(spec, connection, listeners, folder, line_end))
        finally:
            if self._views is not None:
                syscalls.setns(self._own_pid_namespace, syscalls.NEWPID)
            if folder is not None:
                os.close(folder)
            if line_end is not None:
                line_end.close()
        self._welcome(_Kernel(next(self._numbers), pid, pidfd, connection, spec, line, family))

    def _welcome(self, kernel: _Kernel) -> None:
        """A new process is there: count it, cap it, tell its client, watch it."""
        self._kernels[kernel.number] = kernel
        if kernel.family is not None:
            kernel.family.members.add(kernel.number)
        if self._keeper is not None:
            self._keeper.join(kernel.number, kernel.pidfd, kernel.spec["isolation"])
        with contextlib.suppress(OSError):
            socket.send_fds(kernel.connection, [b'{"forked": true}'], [kernel.pidfd])
        self._selector.register(kernel.connection, selectors.EVENT_READ, lambda: self._take_message(kernel))
        self._selector.register(kernel.pidfd, selectors.EVENT_READ, lambda: self._reap(kernel))

    def _make_template(self, spec: dict[str, Any], control: socket.socket) -> None:
        """Fork a server with this control socket that has run setup code on data."""
        keeper = self._keeper.new_line() if self._keeper is not None else None

        def become() -> None:
            syscalls.die_with_parent()
            self._close()
            try:
                if self._views is not None:
                    self._views.show(spec["files"])
                run_setup(self._app, spec["setup"])
                assert_single_thread()
            except BaseException as error:
                text = "".join(traceback.format_exception_only(error)) if isinstance(error, OSError) else str(error)
                tell(control, {"error": text[-4000:]})
                return
            gc.collect()
            gc.freeze()
            tell(control, {"private_bytes": _private_bytes()})
            Server(control, self._app, self._views, keeper).run()

        pid, pidfd = _forked(become)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._bury(pid, pidfd))
        control.close()
        if keeper is not None:
            keeper.connection.close()

    def _bury(self, pid: int, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)

    def _become_kernel(
        self,
        spec: dict[str, Any],
        connection: socket.socket,
        listeners: list[int],
        folder: int | None,
        line: socket.socket | None,
    ) -> None:
        """In the child: close everything that is the server's, and go on as the kernel; never returns."""
        self._close()
        if self._views is not None:
            self._views.close()
        spec["forget"] = self._own_modules
        run_kernel(self._app, spec, connection, listeners, folder, line)

    def _close(self) -> None:
        """In a child: close what is the server's alone."""
        self._selector.close()
        for kernel in self._kernels.values():
            kernel.connection.close()
            os.close(kernel.pidfd)
            if kernel.line is not None:
                kernel.line.close()
        for kernel, _ in self._ended.values():
            kernel.connection.close()
        if self._keeper is not None:
            self._keeper.connection.close()
        self._control.close()
        os.close(self._own_pid_namespace)

    def _take_message(self, kernel: _Kernel) -> None:
        """On a kernel's connection: files to attach, a branch, or end of file: its client wants it killed."""
        message, fds = receive(kernel.connection)
        if not message:
            self._selector.unregister(kernel.connection)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(kernel.pidfd, signal.SIGKILL)
            return
        request = json.loads(message)
        if "branch" in request:
            self._ask_to_branch(kernel, request["branch"], fds)
            return
        try:
            assert self._views is not None and kernel.pid is not None, "files go to isolated kernels, and no branches"
            self._views.attach(kernel.pid, request["attach"])
            tell(kernel.connection, {"attached": True})
        except OSError as error:
            tell(kernel.connection, {"error": f"the files could not be mounted: {error}"})

    def _ask_to_branch(self, kernel: _Kernel, spec: dict[str, Any], fds: list[int]) -> None:
        """Hand the kernel all that a branch of it needs; what comes of it is heard on its line."""
        connection = socket.socket(fileno=fds[0])
        line, line_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        namespaces: list[int] = []
        try:
            if kernel.line is None or kernel.family is None:
                raise OSError("this kernel was not started as branchable")
            if kernel.line in self._selector.get_map():
                raise OSError("this kernel is being branched already")
            isolation = kernel.spec["isolation"]
            pid = pid_of(kernel.pidfd)
            namespaces = branching.copied_view(
                pid, isolation["uid"], isolation["work_bytes"], is_branch=kernel.pid is None
            )
            message = json.dumps({**spec, "listeners": len(fds) - 1}).encode()
            socket.send_fds(kernel.line, [message], [fds[0], line_end.fileno(), *fds[1:], *namespaces])
        except OSError as error:
            tell(connection, {"error": str(error)})
            connection.close()
            line.close()
        else:
            heard = lambda: self._take_branch(kernel, connection, line)  # noqa: E731
            self._selector.register(kernel.line, selectors.EVENT_READ, heard)
        finally:
            line_end.close()
            for fd in (*fds[1:], *namespaces):
                os.close(fd)

    def _take_branch(self, parent: _Kernel, connection: socket.socket, line: socket.socket) -> None:
        """The kernel's one answer: a branch, by its pidfd, or why not. The kernel may be hostile."""
        assert parent.line is not None and parent.family is not None
        message, fds = receive(parent.line)
        self._selector.unregister(parent.line)
        try:
            if len(fds) != 1 or pid_of(fds[0]) < 0:
                raise ValueError(str(json.loads(message)["refused"]))
        except (ValueError, KeyError, TypeError, OSError) as error:
            for fd in fds:
                os.close(fd)
            tell(connection, {"error": f"the kernel was not branched: {error}"})
            connection.close()
            line.close()
            return
        number = next(self._numbers)
        self._welcome(_Kernel(number, None, fds[0], connection, parent.spec, line, parent.family))

    def _take_kept(self) -> None:
        """The keeper's answer: a kernel has its group, or a dead one's group has been read."""
        assert self._keeper is not None
        answer = self._keeper.receive()
        if (kernel := self._kernels.get(answer.get("joined", -1))) is not None:
            problem = answer["problem"]
            tell(kernel.connection, {"error": f"the kernel's cgroup: {problem}"} if problem else {"capped": True})
        if (ended := self._ended.pop(answer.get("left", -1), None)) is not None:
            self._tell_exit(*ended, out_of_memory=answer["out_of_memory"])

    def _reap(self, kernel: _Kernel) -> None:
        del self._kernels[kernel.number]
        code = None
        if kernel.pid is not None:
            code = os.waitstatus_to_exitcode(os.waitpid(kernel.pid, 0)[1])
        if kernel.line is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(kernel.line)
            kernel.line.close()
        if kernel.family is not None:
            kernel.family.members.discard(kernel.number)
            if not kernel.family.members:
                os.kill(kernel.family.first_process, signal.SIGKILL)
                os.waitpid(kernel.family.first_process, 0)
        self._selector.unregister(kernel.pidfd)
        with contextlib.suppress(KeyError):
            self._selector.unregister(kernel.connection)
        os.close(kernel.pidfd)
        if self._keeper is None:
            self._tell_exit(kernel, code, out_of_memory=False)
        else:
            self._ended[kernel.number] = (kernel, code)
            self._keeper.leave(kernel.number)

    def _tell_exit(self, kernel: _Kernel, code: int | None, *, out_of_memory: bool) -> None:
        tell(kernel.connection, {"exit": code, "out_of_memory": out_of_memory and code in (-signal.SIGKILL, None)})
        kernel.connection.close()


def _private_bytes() -> int:
    found = re.findall(r"^Private_\w+:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return 1024 * sum(map(int, found))


def _forked(become: Callable[[], None]) -> tuple[int, int]:
    """Fork a child that does this and never comes back; returns its id and pidfd."""
    pid = os.fork()
    if pid == 0:
        try:
            become()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # whatever went wrong, there is one server only
    try:
        return pid, os.pidfd_open(pid)
    except OSError:  # no descriptor is left: no one could watch it
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
