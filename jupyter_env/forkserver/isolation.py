"""What keeps a kernel to itself: namespaces, a file system of its own, a user of its own, limits, seccomp.

The server calls `detect` once and `enter` in every child. The child's view holds the system's libraries and its
Python read-only, its data read-only, a private work folder and /tmp in memory with a size cap, its own /proc and a
small /dev; nothing else of the host. Linux only; all through ctypes, since Python 3.11 has no unshare.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from . import seccomp

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE, _DETACH = 1, 2, 4, 32, 4096, 16384, 1 << 18, 2
HOME = "/home/agent"
"""The kernel's home and working folder, in its own view."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/opt")
_ETC = (
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "fonts",
    "localtime",
    "ssl",
    "ca-certificates",
    "alternatives",
    "mime.types",
)
_DEVICES = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the shared namespaces named by the flags.

    Raises:
        OSError: not allowed here.
    """
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that the descriptor names."""
    _check(_libc.setns(fd, kind), "setns")


def die_with_parent() -> None:
    """SIGKILL when the parent ends (PR_SET_PDEATHSIG); a change of user clears it."""
    _check(_libc.prctl(1, signal.SIGKILL, 0, 0, 0), "prctl")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind)]
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), options.encode() if options else None), f"mount {target}")


def become_root_of_user_namespace() -> None:
    """For an ordinary user: a user namespace in which this process may make the others. Needs a single thread."""
    uid, gid = os.getuid(), os.getgid()
    unshare(NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def enter(spec: dict[str, Any]) -> None:
    """In the child, already in a pid namespace of its own: give up everything that is not its own.

    Args:
        spec: `files` (name below data/ -> host path), `run` (host folder of the sockets), `uid` (None in a user
            namespace), `hidden` (folders that are to look empty), `prefixes` (the Python's folders),
            `work_bytes`, `memory_bytes`, `processes`.

    Raises:
        OSError: some step is not allowed; the child must not go on.
    """
    unshare(NEWNS | NEWIPC | NEWUTS | NEWNET)
    _loopback_up()
    _check(_libc.sethostname(b"notebook", 8), "sethostname")
    root = _build_view(spec)
    os.chdir(root)
    _check(_libc.syscall(_PIVOT_ROOT, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _DETACH), "umount")
    _remount_read_only("/")
    os.chdir(HOME)
    _limit(spec["memory_bytes"], spec["processes"], separate_user=spec["uid"] is not None)
    if isinstance(spec["uid"], int):
        os.setgroups([])
        os.setresgid(spec["uid"], spec["uid"], spec["uid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    else:
        _drop_capabilities()
    die_with_parent()
    _check(_libc.prctl(4, 1, 0, 0, 0), "prctl")  # PR_SET_DUMPABLE: else its own /proc/self would be root's
    if seccomp.supported():
        seccomp.install()


_PIVOT_ROOT = 155 if os.uname().machine == "x86_64" else 41


def _loopback_up() -> None:
    """The kernel's own localhost: ipykernel and some libraries talk to themselves over it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        import fcntl

        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def _build_view(spec: dict[str, Any]) -> str:
    """The new root, mounted over /tmp of this mount namespace only; returns its path."""
    root = "/tmp"  # exists everywhere, and is private to this namespace
    _mount("none", "/", None, _REC | _PRIVATE)
    held = _hold(spec)
    _mount("root", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for name in _SYSTEM:
        _copy_system(name, root)
    for prefix in spec["prefixes"]:
        _bind(prefix, root + prefix)
    for hidden in spec["hidden"]:
        if os.path.isdir(root + hidden):
            _mount("hidden", root + hidden, "tmpfs", _RDONLY, "size=4k,mode=555")
    _etc(root)
    _devices(root)
    for folder in ("proc", "tmp", "run"):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    _mount("proc", f"{root}/proc", "proc", _NOSUID | _NODEV)
    owner = f"uid={spec['uid']},gid={spec['uid']}" if spec["uid"] is not None else "uid=0,gid=0"
    _mount("tmp", f"{root}/tmp", "tmpfs", _NOSUID | _NODEV, f"size={spec['work_bytes']},mode=1777")
    os.makedirs(root + HOME)
    _mount("work", root + HOME, "tmpfs", _NOSUID | _NODEV, f"size={spec['work_bytes']},mode=700,{owner}")
    os.mkdir(f"{root}{HOME}/data")
    for name, fd in held["files"].items():
        _bind(f"/proc/self/fd/{fd}", f"{root}{HOME}/data/{name}")
    run = str(spec["run"])
    _bind(f"/proc/self/fd/{held['run']}", root + run, read_only=False)
    for fd in (*held["files"].values(), held["run"]):
        os.close(fd)
    return root


def _hold(spec: dict[str, Any]) -> dict[str, Any]:
    """Open what lies where the new root will cover it; a descriptor still names it then."""
    files = {name: os.open(path, os.O_PATH | os.O_CLOEXEC) for name, path in spec["files"].items()}
    return {"files": files, "run": os.open(str(spec["run"]), os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)}


def _copy_system(name: str, root: str) -> None:
    path = Path(name)
    if path.is_symlink():
        os.symlink(path.readlink(), root + name)
    elif path.is_dir():
        _bind(name, root + name)


def _bind(source: str, target: str, read_only: bool = True) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, None, _BIND)
    if read_only:
        _remount_read_only(target)


def _remount_read_only(target: str) -> None:
    flags = _REMOUNT | _BIND | _RDONLY | _NOSUID
    try:
        _mount("none", target, None, flags)
    except PermissionError:  # in a user namespace the flags that the host set must stay
        locked = os.statvfs(target).f_flag
        kept = sum(
            flag for flag, bit in ((_NODEV, os.ST_NODEV), (8, os.ST_NOEXEC), (1024, os.ST_NOATIME)) if locked & bit
        )
        _mount("none", target, None, flags | kept | (1 << 21 if locked & os.ST_RELATIME else 0))


def _etc(root: str) -> None:
    os.makedirs(f"{root}/etc")
    for name in _ETC:
        path = Path("/etc") / name
        if path.is_symlink() and not path.is_dir():
            with contextlib.suppress(OSError):
                _bind(str(path.resolve()), f"{root}/etc/{name}")
        elif path.exists():
            _bind(str(path), f"{root}/etc/{name}")
    Path(f"{root}/etc/passwd").write_text(f"agent:x:{os.getuid()}:{os.getgid()}::{HOME}:/bin/sh\n")
    Path(f"{root}/etc/hosts").write_text("127.0.0.1 localhost notebook\n")
    Path(f"{root}/etc/nsswitch.conf").write_text("passwd: files\nhosts: files\n")


def _devices(root: str) -> None:
    dev = f"{root}/dev"
    os.makedirs(f"{dev}/shm")
    os.makedirs(f"{dev}/pts")
    for name in _DEVICES:
        _bind(f"/dev/{name}", f"{dev}/{name}", read_only=False)
    _mount("shm", f"{dev}/shm", "tmpfs", _NOSUID | _NODEV, "size=256m,mode=1777")
    with contextlib.suppress(OSError):  # only terminals need it
        _mount("pts", f"{dev}/pts", "devpts", _NOSUID, "newinstance,ptmxmode=0666")
        os.symlink("pts/ptmx", f"{dev}/ptmx")
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{dev}/{name}")


def _limit(memory_bytes: int, processes: int, separate_user: bool) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    if separate_user:  # counted per user: only with one of its own is it the kernel's own cap
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))


def _drop_capabilities() -> None:
    """In a user namespace the process stays its own root: without capabilities that is an empty title."""
    for capability in range(64):
        if _libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP, until there are no more
            break
    header = struct.pack("<Ii", 0x20080522, 0)
    number = 126 if os.uname().machine == "x86_64" else 91
    _check(_libc.syscall(number, header, bytes(24)), "capset")


def detect() -> dict[str, str]:
    """What this host gives, tried in a child: feature -> "" if it is there, else what is missing."""
    if sys.platform != "linux":
        return {"namespaces": "needs Linux"}
    found: dict[str, str] = {}
    trials = [("user namespace", NEWUSER)] if os.getuid() else []
    trials += [("mount", NEWNS), ("pid", NEWPID), ("network", NEWNET), ("ipc", NEWIPC), ("uts", NEWUTS)]
    for name, flag in trials:
        found[name] = _tried(flag | (NEWUSER if os.getuid() else 0))
    found["seccomp"] = "" if seccomp.supported() else f"no filter for {os.uname().machine}"
    found["own user"] = "needs root: kernels share your user, in a user namespace" if os.getuid() else ""
    return found


def _tried(flags: int) -> str:
    """Whether a child may unshare these; the error's text if not."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _libc.unshare(flags) == 0 else min(ctypes.get_errno(), 255))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return "" if code == 0 else os.strerror(code)
