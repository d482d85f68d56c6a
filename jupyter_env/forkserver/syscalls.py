"""The Linux calls that Python 3.11 does not offer, through ctypes; each raises OSError with the call's name."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from functools import cache
from typing import Any

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000

RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE, SLAVE, DETACH = 1, 2, 4, 32, 4096, 16384, 1 << 18, 1 << 19, 2
_KEPT_BY_USER_NAMESPACES = ((os.ST_NODEV, NODEV), (os.ST_NOEXEC, 8), (os.ST_NOATIME, 1024), (os.ST_RELATIME, 1 << 21))

_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 1, 2
_X86 = os.uname().machine == "x86_64"
_PIVOT_ROOT, _CAPSET = (155, 126) if _X86 else (41, 91)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the shared namespaces named by the flags."""
    _check(_libc().unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that the descriptor names."""
    _check(_libc().setns(fd, kind), "setns")


def sethostname(name: bytes) -> None:
    """Of this uts namespace."""
    _check(_libc().sethostname(name, len(name)), "sethostname")


def set_name(name: str) -> None:
    """What process lists show (PR_SET_NAME), at most 15 characters."""
    _check(_libc().prctl(15, name.encode(), 0, 0, 0), "prctl")


def die_with_parent() -> None:
    """SIGKILL when the parent ends (PR_SET_PDEATHSIG); a change of user clears it."""
    _check(_libc().prctl(1, signal.SIGKILL, 0, 0, 0), "prctl")


def set_dumpable() -> None:
    """After a change of user: else the process's own /proc/self would be root's (PR_SET_DUMPABLE)."""
    _check(_libc().prctl(4, 1, 0, 0, 0), "prctl")


def drop_capabilities() -> None:
    """All, for good: a root of a user namespace is then root in name only."""
    for capability in range(64):
        if _libc().prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP, until there are no more
            break
    _check(_libc().syscall(_CAPSET, struct.pack("<Ii", 0x20080522, 0), bytes(24)), "capset")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    encoded = [text.encode() if text is not None else None for text in (source, target, kind)]
    data = options.encode() if options else None
    _check(_libc().mount(*encoded, ctypes.c_ulong(flags), data), f"mount {target}")


def remount_read_only(target: str) -> None:
    """Also in a user namespace, where the flags that the host has set must stay."""
    flags = REMOUNT | BIND | RDONLY | NOSUID
    try:
        mount("none", target, None, flags)
    except PermissionError:
        found = os.statvfs(target).f_flag
        mount("none", target, None, flags | sum(flag for bit, flag in _KEPT_BY_USER_NAMESPACES if found & bit))


def unmount(target: str) -> None:
    """Detach it with all that is mounted below."""
    _check(_libc().umount2(target.encode(), DETACH), f"umount {target}")


def pivot_root_here() -> None:
    """Make the working folder, a mount point, the root, and detach the old one."""
    _check(_libc().syscall(_PIVOT_ROOT, b".", b"."), "pivot_root")
    unmount(".")


def clone_mount(path: str) -> int:
    """A detached read-only mount of the file or folder, as a descriptor for `attach_mount` (Linux 5.12)."""
    path_flags = 0x1 | os.O_CLOEXEC  # OPEN_TREE_CLONE
    fd = _check(_libc().syscall(_OPEN_TREE, _AT_FDCWD, path.encode(), path_flags), f"open_tree {path}")
    attributes = struct.pack("<QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    arguments = (fd, b"", _AT_EMPTY_PATH, attributes, len(attributes))
    try:
        _check(_libc().syscall(_MOUNT_SETATTR, *arguments), "mount_setattr")
    except OSError:
        os.close(fd)
        raise
    return fd


def attach_mount(fd: int, target: str) -> None:
    """Mount the detached one at the target; the descriptor stays open."""
    arguments = (fd, b"", _AT_FDCWD, target.encode(), 0x4)  # MOVE_MOUNT_F_EMPTY_PATH
    _check(_libc().syscall(_MOVE_MOUNT, *arguments), f"move_mount {target}")
