"""What keeps a kernel to itself: namespaces, a view of its own, a user of its own, limits, seccomp. Linux only."""

from __future__ import annotations

import os
import resource
import socket
import struct
from pathlib import Path
from typing import Any

from . import seccomp, syscalls, view

AGENT = 1000
"""The kernel's user as it sees it in a user namespace of its own."""


def enter_user_namespace() -> None:
    """For an ordinary user: go on in a child that may make all other namespaces. Needs a single thread.

    The child is root of a user namespace and the first process of a pid namespace of that: to one that it does not
    own it could not come back after forking into another. This process waits for its end and ends as it did.
    """
    uid, gid = os.getuid(), os.getgid()
    syscalls.unshare(syscalls.NEWUSER | syscalls.NEWPID)
    _map_user(0, uid, gid)
    pid = os.fork()
    if pid == 0:
        syscalls.die_with_parent()
        return
    os.closerange(0, 1 << 16)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def enter(spec: dict[str, Any], folder: int | None = None) -> None:
    """In a child in a pid namespace of its own, in the view: give up everything that is not its own.

    Args:
        spec: `uid` (None in a user namespace), `work_bytes`, `memory_bytes`, `processes`,
            `branchable`.
        folder: see `view.enter`.

    Raises:
        OSError: some step is not allowed; the child must not go on.
    """
    syscalls.unshare(syscalls.NEWNS | syscalls.NEWIPC | syscalls.NEWUTS | syscalls.NEWNET)
    _loopback_up()
    syscalls.sethostname(b"notebook")
    uid = spec["uid"]
    view.enter(spec["work_bytes"], uid or 0, folder)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    else:
        # One more user namespace: its processes are counted apart, and it owns no other namespace.
        syscalls.unshare(syscalls.NEWUSER)
        _map_user(AGENT, 0, 0)
    # After the change of user: set before, the number of processes would be one for all kernels of a user namespace.
    _limit(spec["memory_bytes"], spec["processes"])
    if uid is None:
        syscalls.drop_capabilities()
    syscalls.die_with_parent()
    syscalls.set_dumpable()
    if seccomp.supported():
        # A branch enters namespaces that belong to its own user; no others let it in.
        seccomp.install(allowed=("setns",) if spec["branchable"] else ())


def enter_branch(user_namespace: int, mount_namespace: int) -> None:
    """In a branch: take the copies of the kernel's files for its own, and give up the rights that this gave."""
    syscalls.setns(user_namespace, syscalls.NEWUSER)
    syscalls.setns(mount_namespace, syscalls.NEWNS)
    for fd in (user_namespace, mount_namespace):
        os.close(fd)
    syscalls.drop_capabilities()
    syscalls.set_dumpable()


def _map_user(inside: int, uid: int, gid: int) -> None:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{inside} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{inside} {gid} 1")


def _loopback_up() -> None:
    """The kernel's own localhost: ipykernel and some libraries talk to themselves over it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        import fcntl

        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def _limit(memory_bytes: int, processes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
