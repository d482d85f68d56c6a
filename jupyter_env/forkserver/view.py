"""What a kernel sees of the file system: the system's libraries and its Python, read-only, and a private corner.

The server builds one view, in a mount namespace of its own, and moves into it: what is forked there never had the
host's files in reach. A kernel gets a copy of that namespace with its own `/agent` (a tmpfs with a size cap: working
folder, home, /tmp, shared memory) and `/proc`. Data files are mounted into a kernel by the server when it is claimed;
the host's namespace, kept as a descriptor, is where they are looked up.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from . import syscalls

AGENT_FOLDER = "/agent"
WORK, HOME, TMP, RUN = "/agent/work", "/agent/home", "/agent/tmp", "/agent/run"

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32")
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
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_TEMPLATE_BYTES = 64 * 1024**2
_INODES = 100_000
"""Files a kernel may make: empty ones cost the host memory that no size cap counts."""


class Views:
    """The server's two mount namespaces: the host's, and the view in which it lives once this is made."""

    def __init__(self, hidden: Sequence[str], devices: Sequence[str]) -> None:
        """Build the view and move into it.

        Args:
            hidden: folders that are to look empty.
            devices: further device files, of GPUs.

        Raises:
            OSError: not allowed here.
        """
        syscalls.unshare(syscalls.NEWNS)
        # A slave: what the host mounts later can be served too, and nothing of ours shows there.
        syscalls.mount("none", "/", None, syscalls.REC | syscalls.SLAVE)
        self._host = _open_namespace("self")
        syscalls.unshare(syscalls.NEWNS)
        syscalls.mount("none", "/", None, syscalls.REC | syscalls.PRIVATE)
        _build(hidden, devices)
        self._view = _open_namespace("self")

    def show(self, files: Mapping[str, str]) -> None:
        """In a template: its own view, with the files at data/ of the working folder, in which it then is."""
        mounts = self._host_mounts(files)
        syscalls.unshare(syscalls.NEWNS)
        enter(_TEMPLATE_BYTES, 0, None)
        _attach(mounts)
        view = _open_namespace("self")
        os.dup2(view, self._view, inheritable=False)
        os.close(view)

    def host_folder(self, path: str) -> int:
        """A detached read-only mount of a folder of the host."""
        return self._host_mounts({"": path})[""]

    def attach(self, pid: int, files: Mapping[str, str]) -> None:
        """Mount host files, by their names below data/, into the view of a kernel that has run no code yet."""
        kernel = _open_namespace(str(pid))
        mounts = self._host_mounts(files)
        try:
            syscalls.setns(kernel, syscalls.NEWNS)
            _attach(mounts)
        finally:
            syscalls.setns(self._view, syscalls.NEWNS)
            os.close(kernel)

    def _host_mounts(self, files: Mapping[str, str]) -> dict[str, int]:
        """A detached mount of each file, by its name."""
        mounts: dict[str, int] = {}
        syscalls.setns(self._host, syscalls.NEWNS)
        try:
            for name, path in files.items():
                mounts[name] = syscalls.clone_mount(path)
        except OSError:
            for fd in mounts.values():
                os.close(fd)
            raise
        finally:
            syscalls.setns(self._view, syscalls.NEWNS)
        return mounts

    def close(self) -> None:
        """In a child: give up the way to the host's files."""
        os.close(self._host)
        os.close(self._view)


def _open_namespace(pid: str) -> int:
    return os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def _attach(mounts: Mapping[str, int]) -> None:
    """Mount them below data/ of the view that this process is in, and close them."""
    try:
        for name, fd in mounts.items():
            target = _data_path(name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o444))
            syscalls.attach_mount(fd, target)
    finally:
        for fd in mounts.values():
            os.close(fd)


def _data_path(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        raise OSError(f"a data file's name is a relative path below data/, got {name!r}")
    return f"{WORK}/data/{name}"


def _build(hidden: Sequence[str], devices: Sequence[str]) -> None:
    root = "/tmp"  # exists everywhere, and is private to this namespace
    # The shorter first: a folder is bound before what lies in it. And held, since one may lie in /tmp.
    prefixes = sorted({sys.prefix, sys.base_prefix} - {"/usr"}, key=len)
    held = {name: os.open(name, os.O_PATH | os.O_CLOEXEC) for name in prefixes}
    syscalls.mount("root", root, "tmpfs", syscalls.NOSUID | syscalls.NODEV, "size=1m,mode=755")
    for name in _SYSTEM:
        _copy_system(name, root)
    for prefix, fd in held.items():
        _bind(f"/proc/self/fd/{fd}", root + prefix)
        os.close(fd)
    for folder in (*hidden, f"{sysconfig.get_path('purelib')}/jupyter_env"):
        if os.path.isdir(root + folder):
            syscalls.mount("hidden", root + folder, "tmpfs", syscalls.RDONLY, "size=4k,mode=555")
    _etc(root)
    os.makedirs(f"{root}/dev/pts")
    for path in (*_DEVICES, *devices):
        _bind(path, root + path, read_only=False)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{root}/dev/{name}")
    os.symlink("pts/ptmx", f"{root}/dev/ptmx")
    os.symlink("/agent/shm", f"{root}/dev/shm")
    if os.path.isdir(f"{root}/tmp"):  # the Python itself is in there; see `_cover_tmp`
        _in_tmp.extend(prefix for prefix in prefixes if prefix.startswith("/tmp/"))
    else:
        os.symlink(TMP, f"{root}/tmp")
    for folder in ("agent", "proc", "run"):
        os.makedirs(root + "/" + folder)
    # The server's own, under the one that each kernel mounts: without it a user namespace may not mount any.
    syscalls.mount("proc", f"{root}/proc", "proc", syscalls.NOSUID | syscalls.NODEV)
    os.chdir(root)
    syscalls.pivot_root_here()
    syscalls.remount_read_only("/")
    os.chdir("/")


def _copy_system(name: str, root: str) -> None:
    path = Path(name)
    if path.is_symlink():
        os.symlink(path.readlink(), root + name)
    elif path.is_dir():
        _bind(name, root + name)


def _bind(source: str, target: str, *, read_only: bool = True) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    syscalls.mount(source, target, None, syscalls.BIND)
    if read_only:
        syscalls.remount_read_only(target)


def _etc(root: str) -> None:
    os.makedirs(f"{root}/etc")
    for name in _ETC:
        path = Path("/etc") / name
        if path.is_symlink() and not path.is_dir():
            with contextlib.suppress(OSError):
                _bind(str(path.resolve()), f"{root}/etc/{name}")
        elif path.exists():
            _bind(str(path), f"{root}/etc/{name}")
    Path(f"{root}/etc/hosts").write_text("127.0.0.1 localhost notebook\n")
    Path(f"{root}/etc/nsswitch.conf").write_text("passwd: files\nhosts: files\n")


def enter(work_bytes: int, uid: int, folder: int | None) -> None:
    """In a forked child, in fresh namespaces: mount what is the kernel's own.

    Args:
        work_bytes: cap of everything it writes to files.
        uid: whose the files are.
        folder: detached mount of a folder that the working folder shows; changes to it stay in memory.
    """
    syscalls.mount("agent", AGENT_FOLDER, "tmpfs", syscalls.NOSUID | syscalls.NODEV, agent_options(work_bytes, uid))
    folders = {WORK: 0o755, f"{WORK}/data": 0o755, HOME: 0o700, RUN: 0o700, TMP: 0o1777, "/agent/shm": 0o1777}
    for path, mode in folders.items():
        os.mkdir(path)
        os.chown(path, uid, uid)
        os.chmod(path, mode)
    syscalls.mount("proc", "/proc", "proc", syscalls.NOSUID | syscalls.NODEV)
    with contextlib.suppress(OSError):  # only terminals, and IPython's `!command`, need it
        syscalls.mount("pts", "/dev/pts", "devpts", syscalls.NOSUID, "newinstance,ptmxmode=0666")
    if _in_tmp:
        _cover_tmp()
    if folder is not None:
        _overlay(folder, uid)
        os.close(folder)
    os.chdir(WORK)


_in_tmp: list[str] = []
"""Folders of the Python that lie in /tmp."""


def _cover_tmp() -> None:
    """Where a checkout lies in /tmp: a /tmp of the kernel's own over it, and its Python in that again."""
    held = {prefix: os.open(prefix, os.O_PATH | os.O_CLOEXEC) for prefix in _in_tmp}
    os.mkdir("/agent/.tmp")
    os.chmod("/agent/.tmp", 0o1777)
    syscalls.mount("/agent/.tmp", "/tmp", None, syscalls.BIND)
    for prefix, fd in held.items():
        _bind(f"/proc/self/fd/{fd}", prefix)
        os.close(fd)


def agent_options(work_bytes: int, uid: int) -> str:
    """Of the mount that holds all files of a kernel."""
    return f"size={work_bytes},nr_inodes={_INODES},mode=755,uid={uid},gid={uid}"


def _overlay(folder: int, uid: int) -> None:
    layers = {name: f"/agent/.{name}" for name in ("lower", "upper", "work")}
    for path in layers.values():
        os.mkdir(path)
        os.chown(path, uid, uid)
    syscalls.attach_mount(folder, layers["lower"])
    options = f"lowerdir={layers['lower']},upperdir={layers['upper']},workdir={layers['work']}"
    syscalls.mount("overlay", WORK, "overlay", syscalls.NOSUID | syscalls.NODEV, options)
