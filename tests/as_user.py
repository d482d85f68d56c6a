"""Run a command as an ordinary user without any privilege: `python as_user.py COMMAND ...`, by root.

In a mount namespace of its own, where the way to this Python is open to everyone, as it is where users install one.
"""

import os
import sys
import tempfile
from pathlib import Path

from jupyter_env.forkserver import syscalls

USER = 54_321


def main(command: list[str]) -> None:
    syscalls.unshare(syscalls.NEWNS)
    syscalls.mount("none", "/", None, syscalls.REC | syscalls.PRIVATE)
    for prefix in {sys.prefix, sys.base_prefix}:
        _open_the_way(Path(prefix))
    home = tempfile.mkdtemp(prefix="home-", dir="/tmp")
    os.chown(home, USER, USER)
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    os.environ.update(HOME=home, TMPDIR=home)
    os.execv(command[0], command)


def _open_the_way(prefix: Path) -> None:
    closed = [folder for folder in reversed(prefix.parents) if not folder.stat().st_mode & 0o001]
    if not closed:
        return
    held = os.open(prefix, os.O_PATH)
    syscalls.mount("open", str(closed[0]), "tmpfs", 0, "mode=755")
    prefix.mkdir(parents=True)
    syscalls.mount(f"/proc/self/fd/{held}", str(prefix), None, syscalls.BIND | syscalls.REC)


if __name__ == "__main__":
    main(sys.argv[1:])
