"""Forking is safe from a single thread."""

from __future__ import annotations

import os


def assert_single_thread() -> None:
    """A fork copies one thread: with another there would be locks that no one opens.

    Raises:
        RuntimeError: there is another.
    """
    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        raise RuntimeError(
            f"the server has {len(threads)} threads and cannot fork safely; leave out the preload that starts them"
        )
