"""Branches: a live kernel forks itself between two cells, and its copy gets files of its own.

A process cannot leave its pid namespace, so a kernel that may be branched is not the first process of its own: a
process that only waits is, and the namespace lives as long as any of the family. Nor may a kernel enter a namespace
of ours. So the server makes a user namespace that belongs to the kernel's user, and in that a mount namespace with a
copy of the kernel's files: its owner, and so the forked child, may enter both, and has no rights outside them.
What is shared by a family: the pid, network and ipc namespace, and the user; its members can signal each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import isolation, syscalls
from .messages import receive, tell
from .view import AGENT_FOLDER, WORK, agent_options

_OWN = ("ipykernel", "tornado", "zmq", "IPython")


# In the server


def be_first_process() -> None:
    """In a child: live for the namespace's sake, and bury what is orphaned in it. Never returns."""
    os.closerange(0, 1 << 16)
    syscalls.die_with_parent()
    syscalls.set_name("kernel-family")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        signal.pause()


def copied_view(pid: int, uid: int | None, work_bytes: int, *, is_branch: bool) -> list[int]:
    """Descriptors of a user namespace and a mount namespace in it, in which the kernel's files are copies.

    Args:
        pid: the kernel's.
        uid: its user; None if it is one of a user namespace from the start.
        work_bytes: cap of the copy, as of the original.
        is_branch: whether it is a branch itself, and so in a user namespace.

    Raises:
        OSError: the copy could not be made; it may not fit.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            helper = os.fork()
            if helper == 0:
                try:
                    _copy_view(pid, uid, work_bytes, is_branch)
                    theirs.send(b"done")
                    theirs.recv(1)  # the namespaces live until they are opened
                except BaseException as error:
                    theirs.send(str(error).encode())
                finally:
                    os._exit(0)
        answer = ours.recv(4096)
        try:
            if answer != b"done":
                raise OSError(f"the kernel's files could not be copied: {answer.decode(errors='replace')}")
            return [os.open(f"/proc/{helper}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "mnt")]
        finally:
            with contextlib.suppress(OSError):
                ours.send(b"x")
            os.waitpid(helper, 0)


def _copy_view(pid: int, uid: int | None, work_bytes: int, is_branch: bool) -> None:
    namespaces = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("mnt", "user")]
    itself = os.open(f"/proc/{os.getpid()}", os.O_PATH)  # which the kernel's /proc does not show
    syscalls.setns(namespaces[0], syscalls.NEWNS)
    if uid is None or is_branch:
        syscalls.setns(namespaces[1], syscalls.NEWUSER)
    if uid is not None:
        if not is_branch:
            os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        syscalls.set_dumpable()
    inside = isolation.AGENT if uid is None else uid
    syscalls.unshare(syscalls.NEWUSER | syscalls.NEWNS)
    for name, text in {
        "setgroups": "deny",
        "uid_map": f"{inside} {inside} 1",
        "gid_map": f"{inside} {inside} 1",
    }.items():
        os.write(os.open(name, os.O_WRONLY, dir_fd=itself), text.encode())
    os.chdir(AGENT_FOLDER)  # the old one, by its relative paths, once the new one covers it
    syscalls.mount("agent", AGENT_FOLDER, "tmpfs", syscalls.NOSUID | syscalls.NODEV, agent_options(work_bytes, inside))
    _copy_tree(Path("."), Path(AGENT_FOLDER), os.stat(".").st_dev)


def _copy_tree(source: Path, target: Path, device: int) -> None:
    """Files, folders and links; a data file, which is a mount, is mounted again; sockets and pipes are left out."""
    for entry in os.scandir(source):
        copy, found = target / entry.name, entry.stat(follow_symlinks=False)
        if entry.is_symlink():
            copy.symlink_to(os.readlink(entry.path))
        elif entry.is_dir():
            copy.mkdir()
            _copy_tree(Path(entry.path), copy, device)
            copy.chmod(stat.S_IMODE(found.st_mode))
        elif found.st_dev != device:
            copy.touch()
            syscalls.mount(entry.path, str(copy), None, syscalls.BIND)
        elif entry.is_file():
            shutil.copy2(entry.path, copy)


# In the kernel


class Brancher:
    """A kernel's ear for requests to branch, and what it takes to be one.

    Args:
        line: to the server.
        serve: goes on as a kernel with another connection; never returns.
    """

    def __init__(self, line: socket.socket, serve: Callable[..., None]) -> None:
        self._line = line
        self._serve = serve

    def listen(self) -> None:
        """Hear requests between the cells of the current loop; no code of an agent has run yet."""
        self._own_threads = threading.enumerate()
        asyncio.get_event_loop_policy().get_event_loop().add_reader(self._line, self._take)

    def _take(self) -> None:
        message, fds = receive(self._line)
        if not message:
            return
        refusal = obstacle(self._own_threads)
        if refusal:
            tell(self._line, {"refused": refusal})
        else:
            self._fork(json.loads(message), fds)
        for fd in fds:
            os.close(fd)

    def _fork(self, spec: dict[str, Any], fds: list[int]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        drawn = random.getstate()
        between = os.fork()
        if between:
            os.waitpid(between, 0)
            return
        try:
            if os.fork():  # the first process of the namespace becomes the branch's parent, and buries it
                os._exit(0)
            os.setsid()  # interrupts go to a group
            self._become_branch(spec, fds, drawn)
        except BaseException as error:
            tell(self._line, {"refused": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(0)

    def _become_branch(self, spec: dict[str, Any], fds: list[int], drawn: tuple[Any, ...]) -> None:
        count = spec["listeners"]
        connection, line, listeners = socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1]), fds[2 : 2 + count]
        here = os.getcwd()
        isolation.enter_branch(*fds[2 + count :])
        os.chdir(here if os.path.isdir(here) else WORK)
        pidfd = os.pidfd_open(os.getpid())
        socket.send_fds(self._line, [b'{"branched": true}'], [pidfd])
        os.close(pidfd)
        self._line.close()
        self._line = line

        def ready() -> None:
            random.setstate(drawn)  # Python seeds it anew when it forks; a branch has the same state
            tell(connection, {"ready": True})
            connection.close()
            self.listen()

        self._serve(spec["connection"], listeners, ready)


def obstacle(own_threads: list[threading.Thread]) -> str:
    """Why this process cannot be branched now; empty if it can. `own_threads` are the kernel's."""
    threads = [
        each.name
        for each in threading.enumerate()
        if each not in own_threads and not type(each).__module__.startswith((*_OWN, __package__ or ""))
    ]
    if threads:
        return f"the code has started threads that a branch would not have: {', '.join(threads[:5])}"
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    if children.exists() and children.read_text().split():
        return "the code has started processes that a branch would not have"
    tasks = [task for task in asyncio.all_tasks() if _of_the_code(task)]
    return f"the code has started {len(tasks)} asyncio tasks that a branch would not have" if tasks else ""


def _of_the_code(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and not any(f"/{package}/" in code.co_filename for package in _OWN)
