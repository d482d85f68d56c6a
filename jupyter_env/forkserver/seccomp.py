"""A seccomp filter for kernels: a denylist, as BPF, installed through ctypes.

It takes away what data analysis never needs and escapes use: mounts, new namespaces, tracing other processes, kernel
modules, keyrings, bpf, io_uring. It is no whitelist: scientific code calls too much to name it all. Numbers are of
x86-64 and arm64; elsewhere there is no filter, and `detect` says so.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Collection

_EPERM, _ENOSYS = errno.EPERM, errno.ENOSYS

# name: (x86-64, arm64)
_DENIED = {
    "ptrace": (101, 117),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "acct": (163, 89),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "mount_setattr": (442, 442),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NEW_NAMESPACES = 0x7E020000  # the CLONE_NEW* flags

_LOAD, _JUMP_EQUAL, _JUMP_GE, _JUMP_ANY, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def supported() -> bool:
    """Whether there is a filter for this processor."""
    return platform.machine() in _ARCHES


def install(allowed: Collection[str] = ()) -> None:
    """Put the filter on this process and its descendants, for good.

    Args:
        allowed: calls of the denylist that are let through all the same.

    Raises:
        OSError: the system refuses it.
    """
    program = _program(*_ARCHES[platform.machine()], allowed)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    filter_ = Filter(len(program) // 8, ctypes.addressof(buffer))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filter_), 0, 0):
        raise OSError(ctypes.get_errno(), "the seccomp filter was refused")


def _program(column: int, audit_arch: int, allowed: Collection[str]) -> bytes:
    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("<HBBI", code, if_true, if_false, value)

    steps = [
        step(_LOAD, 4),  # the architecture: 32-bit calls have other numbers
        step(_JUMP_EQUAL, audit_arch, 1, 0),
        step(_RETURN, _KILL),
        step(_LOAD, 0),  # the call's number
    ]
    if column == 0:  # x32 calls
        steps += [step(_JUMP_GE, 0x40000000, 0, 1), step(_RETURN, _ERRNO | _ENOSYS)]
    # glibc falls back from clone3, whose flags a filter cannot read, to clone.
    steps += [step(_JUMP_EQUAL, _CLONE3[column], 0, 1), step(_RETURN, _ERRNO | _ENOSYS)]
    for numbers in (numbers for name, numbers in _DENIED.items() if name not in allowed):
        steps += [step(_JUMP_EQUAL, numbers[column], 0, 1), step(_RETURN, _ERRNO | _EPERM)]
    steps += [
        step(_JUMP_EQUAL, _CLONE[column], 0, 3),
        step(_LOAD, 16),  # clone's flags, lower half
        step(_JUMP_ANY, _NEW_NAMESPACES, 0, 1),
        step(_RETURN, _ERRNO | _EPERM),
        step(_RETURN, _ALLOW),
    ]
    return b"".join(steps)
