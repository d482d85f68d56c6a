"""Stage 8: each question on its own: what was found against it counts, and its code is run on the data."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import xxhash

from jupyter_env.check import ReferenceRun, check_task, run_reference
from jupyter_env.interpreters import KernelSettings
from jupyter_env.task import Task, TaskPool
from pipeline.drafts import UNKNOWN_CONTENT, Candidate, make_task, refined
from pipeline.model_stage import ModelStage
from pipeline.parts import read_rows
from pipeline.run_folder import RunFolder, Unit
from pipeline.stage import Item, Rejected, Row

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("notebook", pa.string()),
        ("notebook_key", pa.string()),
        ("kernel_version", pa.int64()),
        ("forked_from", pa.int64()),
        ("repo", pa.string()),
        ("level", pa.string()),
        ("has_data", pa.bool_()),
        ("datasets", pa.list_(pa.string())),
        ("hashes", pa.list_(pa.string())),
        ("task", pa.string()),
    ]
)


class CheckSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How questions are tried."""

    code_timeout_s: float = 60.0
    """Of the reference code; an agent's cell has as long."""
    max_memory_bytes: int = 8 * 1024**3
    in_flight: int = 4
    """Questions at a time in one task: kernels, mostly."""


class Check(ModelStage):
    """Rejects a question that failed a check before, or whose code does not give its answer.

    Args:
        datasets: the folder of data sets.
    """

    name = "check"
    version = 2
    upstream = "ask"
    schema = SCHEMA
    takes_over = True
    expands = "count"

    def __init__(self, folder: RunFolder, settings: CheckSettings, datasets: Path) -> None:
        super().__init__(folder, {}, settings.in_flight)
        self.settings, self.datasets = settings, datasets

    def config(self) -> Any:
        """The settings."""
        return msgspec.to_builtins(msgspec.structs.replace(self.settings, in_flight=0))

    def items(self, unit: Unit) -> Iterator[Item]:
        """The questions, numbered in their notebook."""
        for row in read_rows(self.run_folder.parts(self.upstream, unit.name)):
            for number, encoded in enumerate(row["candidates"]):
                key = xxhash.xxh3_128_hexdigest(row["key"] + encoded)
                yield Item(f"{row['id']}#q{number}", key, (row, msgspec.json.decode(encoded, type=Candidate)))

    async def judge(self, item: Item) -> Row | Rejected:
        """Run the code, then see whether the task is sound."""
        row, candidate = item.payload
        if candidate.rejected:
            return Rejected(candidate.rejected, candidate.detail)
        try:
            task = make_task(item.id, candidate, row)
        except ValueError as error:
            return Rejected("no_task", str(error))
        checks = {**candidate.checks, "reference_code": "not_run"}
        has_data = bool(row["files"])
        if has_data:
            run = await self._run_code(task)
            if isinstance(run, Rejected):
                return run
            checks["reference_code"] = "agrees"
            task = msgspec.structs.replace(task, answer=refined(task.answer, run.last_line))
        task = msgspec.structs.replace(task, metadata={**task.metadata, "checks": checks})
        if has_data:
            pool = TaskPool([task], self.datasets)
            report = await check_task(task, pool, self._kernel(), self.settings.code_timeout_s)
            if not report.sound:
                return Rejected("unsound", "; ".join(report.problems))
        return {
            "id": item.id,
            "key": item.key,
            "notebook": row["id"],
            "notebook_key": row["key"],
            **{name: row[name] for name in ("kernel_version", "forked_from", "repo", "datasets")},
            "level": task.level,
            "has_data": has_data,
            "hashes": sorted({file.sha256 for file in task.files} - {UNKNOWN_CONTENT}),
            "task": msgspec.json.encode(task).decode(),
        }

    def _kernel(self) -> KernelSettings:
        return KernelSettings(max_memory_bytes=self.settings.max_memory_bytes)

    async def _run_code(self, task: Task) -> ReferenceRun | Rejected:
        pool = TaskPool([task], self.datasets)
        files = {file.path: await asyncio.to_thread(pool.file_path, file) for file in task.files}
        run = await run_reference(task, files, self._kernel(), timeout_s=self.settings.code_timeout_s)
        if run.status != "ok":
            return Rejected(f"code_{run.status}", run.text[-400:])
        return run if run.verdict.correct else Rejected("code_disagrees", run.verdict.reason)
