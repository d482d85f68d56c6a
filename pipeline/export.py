"""The last step: a pool of tasks, training data, traces as notebooks, and a card that says where all came from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from datatrove.pipeline.base import PipelineStep

from jupyter_env.answer import reference_text
from jupyter_env.episode import EpisodeRecord
from jupyter_env.interpreters.output import OutputLimits
from jupyter_env.report.notebook import notebook_name, write_notebook
from jupyter_env.task import Task, TaskPool
from pipeline import decisions
from pipeline.card import card
from pipeline.conversation import conversation, turn_status
from pipeline.lineage import groups, held_out
from pipeline.parts import read_rows
from pipeline.run_folder import RunFolder
from pipeline.stage import Row

VERSION = 2


class ExportSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the result is cut up."""

    held_out: float = 0.05
    """Share of the questions whose data sets and notebooks are kept out of training."""
    seed: int = 0
    notebooks: bool = True
    """Write each trace as a notebook."""
    copy_data: bool = True
    """Copy the tables beside the pool."""


class Export(PipelineStep):  # type: ignore[misc]
    """Writes `export/` anew, beside the old one, and puts it in its place; one task."""

    type = "notebooks"
    name = "export"

    def __init__(
        self,
        folder: RunFolder,
        settings: ExportSettings,
        datasets: Path,
        limits: OutputLimits | None,
        models: dict[str, dict[str, Any]],
        *,
        with_traces: bool,
    ) -> None:
        super().__init__()
        self.run_folder, self.settings, self.datasets = folder, settings, datasets
        self.limits, self.models, self.with_traces = limits, models, with_traces

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write, unless it is there."""
        folder, units = self.run_folder, self.run_folder.units()
        about = [VERSION, msgspec.to_builtins(self.settings), msgspec.to_builtins(self.limits)]
        mark = decisions.basis(folder, "curate" if self.with_traces else "unique", units, about)
        out, aside = folder.root / "export", folder.root / "export.tmp"
        stamp = out / ".mark"
        if stamp.exists() and stamp.read_text() == mark:
            return
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        self._write(aside)
        (aside / ".mark").write_text(mark)
        shutil.rmtree(out, ignore_errors=True)
        aside.rename(out)

    def _write(self, out: Path) -> None:
        rows = list(read_rows(self.run_folder.all_parts("unique")))
        names = groups(rows)
        held = held_out(names, self.settings.held_out, self.settings.seed)
        group = {row["id"]: name for row, name in zip(rows, names, strict=True)}
        self._write_pools(out / "pool", rows, group, held)
        counts = self._write_traces(out, group, held) if self.with_traces else {}
        text = card(self.run_folder, self.models, counts, groups=len(set(names)), held_groups=len(held))
        (out / "README.md").write_text(text, "utf-8")

    def _write_pools(self, out: Path, rows: list[Row], group: dict[str, str], held: set[str]) -> None:
        out.mkdir(parents=True)
        solved = self._solved()
        split: dict[str, list[Task]] = {"train": [], "held_out": [], "without_data": []}
        for row in rows:
            task = msgspec.json.decode(row["task"], type=Task)
            tried = {"teacher": solved[row["id"]]} if row["id"] in solved else {}
            task = msgspec.structs.replace(task, metadata={**task.metadata, **tried, "group": group[row["id"]]})
            side = "held_out" if group[row["id"]] in held else "train"
            split[side if row["has_data"] else "without_data"].append(task)
        for name, tasks in split.items():
            if tasks or name == "train":
                TaskPool(tasks, self.datasets).save(
                    out / f"{name}.jsonl", with_data=self.settings.copy_data and name != "without_data"
                )

    def _solved(self) -> dict[str, dict[str, int]]:
        """By question, how often the teacher tried and was right: none of several is a sign of a wrong question."""
        found = {}
        for row in read_rows(self.run_folder.all_parts("traces") if self.with_traces else (), ["id", "records"]):
            verdicts = [record.verdict for record in msgspec.json.decode(row["records"], type=list[EpisodeRecord])]
            right = sum(verdict is not None and verdict.correct for verdict in verdicts)
            found[row["id"]] = {"attempts": len(verdicts), "right": right}
        return found

    def _write_traces(self, out: Path, group: dict[str, str], held: set[str]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for variant in ("thinking", "non_thinking"):
            for split in ("train", "validation"):

                def rows(split: str = split, variant: str = variant) -> Iterator[Row]:
                    for row in read_rows(self.run_folder.all_parts("curate")):
                        name = group[row["question_id"]]
                        if (name in held) == (split == "validation"):
                            yield self._sft_row(row, name, thinking=variant == "thinking")

                count = _write_parquet(rows(), out / "sft" / variant / f"{split}.parquet")
                counts[split] = count
        if self.settings.notebooks:
            for row in read_rows(self.run_folder.all_parts("curate"), ["id", "record"]):
                record = msgspec.json.decode(row["record"], type=EpisodeRecord)
                write_notebook(record, out / "notebooks" / notebook_name(row["id"]))
        return counts

    def _sft_row(self, row: Row, group: str, *, thinking: bool) -> Row:
        task = msgspec.json.decode(row["task"], type=Task)
        record = msgspec.json.decode(row["record"], type=EpisodeRecord)
        talk = conversation(record, thinking=thinking, limits=self.limits)
        return {
            "id": row["id"],
            "question": f"{task.question}\n\n{task.guidelines}".strip(),
            "answer": reference_text(task.answer),
            "edu_score": task.metadata["edu_score"],
            "files_used": [file.path for file in task.files] or task.metadata["missing"],
            "packages_used": task.metadata["packages"],
            "kaggle_dataset_name": task.dataset,
            "executor_type": "llm" if row["simulated"] else "kernel",
            "original_notebook": row["notebook"],
            "messages": talk.messages,
            "tools": talk.tools,
            "text": talk.text,
            "final_answer": record.answer or "",
            "correct": row["correct"],
            "verdict": record.verdict.reason if record.verdict else "",
            "level": task.level,
            "question_id": row["question_id"],
            "attempt": row["attempt"],
            "turn_status": turn_status(record),
            "turns": record.turns,
            "tokens": row["tokens"],
            "group": group,
            "licence": task.licence,
        }


def _write_parquet(rows: Iterator[Row], path: Path) -> int:
    """Rows with the features of `datasets`, a few hundred in memory at a time; how many. None at all: no file."""
    from datasets import Features, Json, List, Value
    from datasets.arrow_writer import ParquetWriter

    texts, numbers = Value("string"), Value("int32")
    columns = {
        **dict.fromkeys(("id", "question", "answer"), texts),
        "edu_score": numbers,
        "files_used": List(texts),
        "packages_used": List(texts),
        **dict.fromkeys(("kaggle_dataset_name", "executor_type", "original_notebook"), texts),
        "messages": Json(),
        "tools": Json(),
        **dict.fromkeys(("text", "final_answer"), texts),
        "correct": Value("bool"),
        **dict.fromkeys(("verdict", "level", "question_id"), texts),
        "attempt": numbers,
        "turn_status": List(texts),
        "turns": numbers,
        "tokens": numbers,
        "group": texts,
        "licence": texts,
    }
    first = next(rows, None)
    if first is None:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    features = Features(columns)
    with ParquetWriter(features=features, path=str(path), writer_batch_size=256) as writer:
        count = 0
        while first is not None:
            writer.write(features.encode_example(first))
            count += 1
            first = next(rows, None)
        writer.finalize()
    return count
