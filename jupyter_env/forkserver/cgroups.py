"""Caps of memory and processes for a kernel as a whole, by control groups of version 1 or 2, where they are writable.

A keeper process makes the groups: joining one can wait 10 ms for the kernel's bookkeeping, which must not hold up the
server's forks, and the server itself sees no host file system. It ends when the server does and removes what it made.
https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import syscalls
from .messages import receive, tell
from .pidfd import pid_of

_PREFIX = "jupyter-env-"
_ROOT = Path("/sys/fs/cgroup")


def find() -> dict[str, str]:
    """Where groups can be made: controller ("memory", "pids"; "unified" for both in version 2) -> parent folder.

    `JUPYTER_ENV_CGROUP` names a delegated group of version 2 (`systemd-run --user --scope -p Delegate=yes`). Else the
    process's own group is tried and those above it: a group that holds processes can have no controllers for others.
    """
    own = _own_groups()
    unified = _ROOT if (_ROOT / "cgroup.controllers").exists() else _ROOT / "unified"
    given = os.environ.get("JUPYTER_ENV_CGROUP")
    for parent in [Path(given)] if given else _upwards(unified, own.get("")):
        if _usable(parent, ("memory.max", "pids.max")):
            return {"unified": str(parent)}
    found = {}
    for controller, cap in (("memory", "memory.limit_in_bytes"), ("pids", "pids.max")):
        for parent in _upwards(_ROOT / controller, own.get(controller)):
            if _usable(parent, (cap,)):
                found[controller] = str(parent)
                break
    return found


def _own_groups() -> dict[str, str]:
    """Controller -> path of this process's group; "" for version 2."""
    own: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own |= dict.fromkeys(controllers.split(","), path)
    return own


def _upwards(root: Path, path: str | None) -> Iterator[Path]:
    """The group and those above it; a container may show its own group as the root."""
    if path is not None and root.is_dir():
        group = root / path.lstrip("/")
        while group != root:
            if group.is_dir():
                yield group
            group = group.parent
        yield root


def _usable(parent: Path, caps: tuple[str, ...]) -> bool:
    """Whether a group below it can be made and has the caps."""
    trial = parent / f"{_PREFIX}trial-{os.getpid()}"
    try:
        trial.mkdir()
    except OSError:
        return False
    try:
        return all(os.access(trial / cap, os.W_OK) for cap in caps)
    finally:
        trial.rmdir()


class Keeper:
    """The server's line to its keeper."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def join(self, number: int, pidfd: int, caps: dict[str, Any]) -> None:
        """Ask for a group for a kernel; the answer is `{"joined": number, "problem": text}`."""
        request = {"join": number, "memory_bytes": caps["memory_bytes"], "processes": caps["processes"]}
        socket.send_fds(self.connection, [json.dumps(request).encode()], [pidfd])

    def leave(self, number: int) -> None:
        """Say that the kernel has ended; the answer is `{"left": number, "out_of_memory": bool}`."""
        self.connection.send(json.dumps({"leave": number}).encode(), socket.MSG_NOSIGNAL)

    def new_line(self) -> Keeper:
        """A line for a template."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self.connection, [b'{"new_line": true}'], [theirs.fileno()])
        return Keeper(ours)

    def receive(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            EOFError: the keeper is gone.
        """
        message = self.connection.recv(65_536)
        if not message:
            raise EOFError("the keeper of the control groups has ended")
        answer: dict[str, Any] = json.loads(message)
        return answer


def start_keeper(parents: dict[str, str], not_its: socket.socket) -> Keeper | None:
    """Fork the keeper; None where no groups can be made. `not_its` is the server's socket, closed there."""
    if not parents:
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            ours.close()
            not_its.close()
            os.setsid()
            syscalls.set_name("cgroup-keeper")
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _keep(theirs, {kind: Path(parent) / f"{_PREFIX}{os.getpid()}" for kind, parent in parents.items()})
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    theirs.close()
    return Keeper(ours)


def _keep(connection: socket.socket, folders: dict[str, Path]) -> None:
    for folder in folders.values():
        _sweep(folder.parent)
        folder.mkdir()
        if (folder / "cgroup.subtree_control").exists():
            (folder / "cgroup.subtree_control").write_text("+memory +pids")
    left: set[Path] = set()
    # The server's line is number 0; its templates have lines of their own, and number their kernels for themselves.
    lines, made = {connection: 0}, 0
    while connection in lines:
        for line in select.select(list(lines), [], [])[0]:
            message, fds = receive(line)
            if not message:
                del lines[line]
                line.close()
                continue
            request = json.loads(message)
            if "new_line" in request:
                made += 1
                lines[socket.socket(fileno=fds[0])] = made
                continue
            left |= _answer(line, lines[line], request, fds, folders)
        left = {group for group in left if not _removed(group)}
    for folder in folders.values():
        _remove(folder)


def _answer(
    line: socket.socket, prefix: int, request: dict[str, Any], fds: list[int], folders: dict[str, Path]
) -> set[Path]:
    """Do what a server asks; returns the groups that are to be removed."""
    number = request["join"] if "join" in request else request["leave"]
    groups = {folder / f"{prefix}-{number}" for folder in folders.values()}
    if "join" in request:
        answer = {"joined": number, "problem": _join(groups, pid_of(fds[0]), request)}
        os.close(fds[0])
    else:
        answer = {"left": number, "out_of_memory": any(_killed(group) for group in groups)}
    tell(line, answer)
    return groups if "leave" in request else set()


def _join(groups: set[Path], pid: int, request: dict[str, Any]) -> str:
    """Put the process into groups of its own; returns what went wrong."""
    memory, processes = str(request["memory_bytes"]), str(request["processes"])
    try:
        for group in groups:
            group.mkdir()
            for name, value in (
                ("memory.limit_in_bytes", memory),
                ("memory.memsw.limit_in_bytes", memory),
                ("memory.max", memory),
                ("memory.swap.max", "0"),
                ("memory.oom.group", "0"),
                ("pids.max", processes),
            ):
                if (group / name).exists():
                    (group / name).write_text(value)
            (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        return "" if pid < 0 or error.errno == errno.ESRCH else str(error)  # it may have ended already
    return ""


def _killed(group: Path) -> bool:
    """Whether the kernel's out-of-memory killer was at work in the group."""
    for name in ("memory.events", "memory.oom_control"):
        with contextlib.suppress(OSError):
            counts = re.search(r"^oom_kill (\d+)", (group / name).read_text(), re.MULTILINE)
            return counts is not None and int(counts[1]) > 0
    return False


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # its last process is still being buried
        return False
    return True


def _remove(folder: Path) -> None:
    """The groups of this keeper, whose processes are dying with the server."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        gone = [_removed(group) for group in folder.iterdir() if group.is_dir()]
        if all(gone) and _removed(folder):
            return
        time.sleep(0.02)


def _sweep(parent: Path) -> None:
    """Remove the groups of keepers that were killed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX)
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            for group in folder.iterdir():
                if group.is_dir():
                    _removed(group)
            _removed(folder)
