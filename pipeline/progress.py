"""Progress of a run on the terminal, read from the ledgers, so that it is the same wherever the tasks run."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.plan import Job
from pipeline.run import total_of
from pipeline.run_folder import RunFolder


class Watch:
    """A bar for each job, moved by the ledgers' counts."""

    def __init__(self, folder: RunFolder, progress: Progress) -> None:
        self.folder, self.progress = folder, progress

    def __call__(self, job: Job) -> Callable[[], None]:
        """Begin a bar; the callable returned ends it."""
        stage = job.stage
        total = total_of(self.folder, stage) if stage else None
        bar = self.progress.add_task(job.name, total=total)
        ended = threading.Event()

        def poll() -> None:
            wait_s = 0.5
            while not ended.wait(wait_s) and stage:
                began = time.monotonic()
                self.progress.update(bar, completed=self.folder.tally(stage.name).items)
                wait_s = max(0.5, 20 * (time.monotonic() - began))  # counting takes a twentieth of the time at most

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()

        def end() -> None:
            ended.set()
            thread.join()
            count = self.folder.tally(stage.name).items if stage else 1
            self.progress.update(bar, completed=count, total=max(total or count, count))

        return end


@contextmanager
def watched(folder: RunFolder) -> Iterator[Watch]:
    """A `Watch` on the terminal, while what datatrove logs there goes to `logs/console.log`."""
    log = folder.folder("logs") / "console.log"
    with _stderr_to(log) as terminal:
        console = Console(file=terminal)
        columns = (
            TextColumn("{task.description:16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            yield Watch(folder, progress)


@contextmanager
def _stderr_to(path: Path) -> Iterator[IO[str]]:
    """Descriptor 2 goes to a file, in child processes too; gives the terminal that it was."""
    sys.stderr.flush()
    saved = os.dup(2)
    with path.open("ab") as log, os.fdopen(os.dup(2), "w") as terminal:
        os.dup2(log.fileno(), 2)
        try:
            yield terminal
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
