"""What this host gives for the isolation of kernels, found by trying each step in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from . import cgroups, isolation, seccomp, syscalls, view
from .loading import command


class Feature(NamedTuple):
    """One thing that isolation is made of."""

    name: str
    problem: str
    """Why it is not there; empty if it is."""
    meaning: str
    """What follows where it is missing."""
    required: bool
    """Whether kernels can be isolated at all without it."""


_MEANINGS = {
    "user namespace": "an ordinary user cannot isolate kernels; see /proc/sys/user/max_user_namespaces, AppArmor",
    "mount namespace": "kernels would see the host's files",
    "pid namespace": "kernels would see other processes, and daemons could outlive them",
    "network namespace": "kernels would reach the network",
    "ipc and uts namespaces": "kernels would share System V memory",
    "late mounts": "data cannot be mounted into a started kernel: Linux 5.12 or newer is needed",
    "whole view": "some step of the isolation fails on this host",
}


@cache
def features() -> tuple[Feature, ...]:
    """All of them, in order of importance; takes about 0.2 s the first time.

    Set `JUPYTER_ENV_NO_NAMESPACES` to see how the rest of the package does on a host without any.
    """
    if sys.platform != "linux":
        return (Feature("namespaces", "needs Linux", "kernels are not isolated", required=True),)
    if os.environ.get("JUPYTER_ENV_NO_NAMESPACES"):
        return (Feature("namespaces", "JUPYTER_ENV_NO_NAMESPACES is set", "kernels are not isolated", required=True),)
    trial = subprocess.run(command(sys.executable, "detect"), capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        problem = trial.stderr.strip().rpartition("\n")[2] or f"the trial ended with {trial.returncode}"
        return (Feature("whole view", problem, _MEANINGS["whole view"], required=True),)
    found = [Feature(name, problem, _MEANINGS[name], required=True) for name, problem in json.loads(trial.stdout)]
    no_filter = "" if seccomp.supported() else f"no filter is written for {os.uname().machine}"
    found.append(Feature("seccomp", no_filter, "kernels can make any system call", required=False))
    groups = cgroups.find()
    missing = [name for name in ("memory", "pids") if name not in groups and "unified" not in groups]
    found.append(
        Feature(
            "control groups",
            f"none can be made for {' and '.join(missing)}; see JUPYTER_ENV_CGROUP" if missing else "",
            "memory is capped for each process of a kernel, not for all together",
            required=False,
        )
    )
    return tuple(found)


def main() -> None:
    """In the trial's process: try the steps, print (name, problem) pairs as JSON."""
    ordinary = os.getuid() != 0
    steps: list[tuple[str, Callable[[], None]]] = [
        ("mount namespace", lambda: syscalls.unshare(syscalls.NEWNS)),
        ("pid namespace", lambda: syscalls.unshare(syscalls.NEWPID)),
        ("network namespace", lambda: syscalls.unshare(syscalls.NEWNET)),
        ("ipc and uts namespaces", lambda: syscalls.unshare(syscalls.NEWIPC | syscalls.NEWUTS)),
        ("late mounts", _late_mount),
        ("whole view", _whole_view),
    ]
    found = [("user namespace", _tried(isolation.enter_user_namespace))] if ordinary else []
    for name, step in steps:
        found.append((name, _tried(lambda step=step: _as_root(step))))  # type: ignore[misc]
    print(json.dumps(found))


def _as_root(step: Callable[[], None]) -> None:
    if os.getuid() != 0:
        isolation.enter_user_namespace()
    step()


def _tried(step: Callable[[], None]) -> str:
    """Run the step in a child; returns what went wrong."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            step()
        except OSError as error:
            os.write(writing, str(error).encode())
        except BaseException:
            os.write(writing, traceback.format_exc()[-1000:].encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as words:
        problem = words.read()
    _, status = os.waitpid(pid, 0)
    return problem or ("" if status == 0 else f"the trial ended with {os.waitstatus_to_exitcode(status)}")


def _late_mount() -> None:
    syscalls.unshare(syscalls.NEWNS)
    os.close(syscalls.clone_mount("/usr"))


def _whole_view() -> None:
    """What the server and a kernel's first moments do."""
    view.Views((), ())
    syscalls.unshare(syscalls.NEWPID)
    spec = {"uid": 100_000 if os.getuid() == 0 and _is_real_root() else None}
    spec |= {"work_bytes": 1 << 20, "memory_bytes": 1 << 30, "processes": 100, "branchable": False}
    problem = _tried(lambda: isolation.enter(spec))
    if problem:
        raise OSError(problem)


def _is_real_root() -> bool:
    return Path("/proc/self/uid_map").read_text().split()[2] != "1"
