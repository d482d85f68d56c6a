"""Processes of kernels, and waiting for what ends a moment later."""

import time
from collections.abc import Callable

import psutil

from jupyter_env.interpreters.process import MARK


def kernel_processes() -> list[psutil.Process]:
    """The processes of kernels, parked ones too, that this process or its children started."""
    descendants = psutil.Process().children(recursive=True)
    parents = {str(process.pid) for process in (psutil.Process(), *descendants)}
    found = [process for process in descendants if _name(process) == "jupyter-kernel"]
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if MARK in environment and environment.get("JPY_PARENT_PID") in parents:
            found.append(process)
    return found


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def has_ended(process: psutil.Process) -> bool:
    """Whether it runs no more; who has lost its parent may stay a zombie."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(holds: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Whether the callable becomes true: sockets and threads end a moment after their closing."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
