"""How kernels are started and what they may use."""

from __future__ import annotations

import sys
from typing import Literal

import msgspec

from jupyter_env.interpreters.output import OutputLimits

Isolation = Literal["best", "strict", "none"]


class KernelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a local kernel is started and what it may use."""

    python: str = sys.executable
    """Interpreter that runs the kernel; needs ipykernel. Tables and agents' code use its packages."""
    start_timeout_s: float = 60.0
    """Generous: on a loaded machine many kernels start at once."""
    interrupt_grace_s: float = 2.0
    """How long an interrupted cell may take to stop before the kernel is killed."""
    max_memory_bytes: int = 8 * 1024**3
    """Of data a process may allocate (RLIMIT_DATA, Linux); more gives MemoryError. Where there are control groups, an
    isolated kernel's processes and files together are killed above it."""
    max_output_bytes: int = 8 * 1024**2
    """Of outputs kept for one cell, images included; the rest is read and dropped."""
    limits: OutputLimits = OutputLimits()
    """How much of the outputs the model sees."""
    isolation: Isolation = "best"
    """"best": forked kernels in namespaces of their own where the host allows it, and the plain kernel, with a
    warning, where not. "strict" refuses to run there. "none": the plain kernel."""
    max_work_bytes: int = 1024**3
    """Of all files of an isolated kernel; they lie in memory."""
    max_processes: int = 256
    """Of an isolated kernel, threads too."""
    threads: int = 1
    """Of BLAS and OpenMP: hundreds of kernels share the cores."""
    gpu: bool = False
    """Whether code sees the GPUs; they are the trainer's."""
    setup: str = ""
    """Trusted code whose variables every kernel starts with, say `df = pd.read_csv("data/big.csv")`. Isolated kernels
    of one table share them: it runs once, in a template that they are forked from. Plain kernels each run it."""
    branchable: bool = False
    """Whether isolated kernels can be branched; costs a process and some milliseconds each."""
    parked: int = 1
    """Isolated kernels kept ready for the next episodes, about 12 MB each."""
    refill_after_s: float = 0.01
    """From the start of an isolated kernel to that of the one that is parked in its place. Longer where many episodes
    start together, as in training: their first cells then have the cores for themselves."""
    max_live: int | None = None
    """Isolated kernels of this process at a time; more wait for one to end. Default: what memory has room for."""
