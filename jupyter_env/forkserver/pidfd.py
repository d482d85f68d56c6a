"""Descriptors of processes."""

from __future__ import annotations

import re
from pathlib import Path


def pid_of(pidfd: int) -> int:
    """The process's id as seen from here, which may not be the one that its parent knows; -1 if it has ended."""
    found = re.search(r"^Pid:\s*(-?\d+)", Path(f"/proc/self/fdinfo/{pidfd}").read_text(), re.MULTILINE)
    return int(found[1]) if found is not None else -1
