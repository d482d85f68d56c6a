"""What the tests of the pipeline share: notebooks made to order, and a run in this process."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import ledger
from pipeline.ledger import Outcome
from pipeline.parts import read_rows
from pipeline.plan import Options, jobs
from pipeline.recipe import Recipe
from pipeline.run import check, prepare
from pipeline.run_folder import RunFolder

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def shared(name: str) -> Path:
    """A folder of the optional test data."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/data/{name} beside the checkout")
    return folder


def notebook(*code: str, markdown: str = "", outputs: bool = True, language: str = "python", **metadata: Any) -> bytes:
    """A notebook of nbformat 4 with these code cells."""
    output = [{"output_type": "stream", "name": "stdout", "text": "42\n"}] if outputs else []
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "execution_count": 1, "metadata": {}, "outputs": output, "source": source}
        for source in code
    ]
    if markdown:
        cells.insert(0, {"cell_type": "markdown", "metadata": {}, "source": markdown})
    about = {"language_info": {"name": language}, **metadata}
    return json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": about, "cells": cells}).encode()


def program(seed: int, lines: int = 24) -> list[str]:
    """Code of some cells that no other seed's resembles; it reads a table."""
    body = [f"frame_{seed}['col_{seed}_{n}'] = table.compute_{seed}_{n}('key_{seed}_{n}', {n})" for n in range(lines)]
    return [
        f"import pandas as pd\ntable = pd.read_csv('../input/set{seed}/data.csv')",
        *("\n".join(body[i : i + 6]) for i in range(0, lines, 6)),
    ]


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def run_here(
    out: Path,
    inputs: Path | str,
    *,
    until: str = "near",
    recipe: Recipe | None = None,
    repartition: bool = False,
    **options: Any,
) -> RunFolder:
    """A whole run in this process, without an executor; each stage's account is checked."""
    folder, recipe = RunFolder(out), recipe or Recipe(tasks=2, workers=1)
    chosen = Options(inputs=str(inputs), **options)
    prepare(folder, chosen, recipe, repartition=repartition)
    for job in jobs(folder, chosen, recipe, until):
        for rank in range(job.tasks):
            for step in job.steps:
                step.run(None, rank, job.tasks)
        if job.stage:
            check(folder, job.stage, recipe.max_failed)
    return folder


def outcomes(folder: RunFolder, stage: str) -> dict[str, Outcome]:
    """The last outcome of each item of a stage, by id; fails where an id comes twice."""
    found: dict[str, Outcome] = {}
    for path in folder.ledgers(stage):
        latest = {}
        for line in ledger.read_lines(path)[0]:
            latest.update({(item.id, item.key): item for item in (line.commit.items if line.commit else ())})
        for item in latest.values():
            assert item.id not in found, f"{item.id} is in two ledgers of {stage}"
            found[item.id] = item
    return found


def ids(folder: RunFolder, stage: str) -> list[str]:
    """The ids of the rows that left a stage, sorted; one that comes twice is there twice."""
    return sorted(row["id"] for row in read_rows(folder.all_parts(stage), ["id"]))


@pytest.fixture
def some_notebooks(tmp_path: Path) -> Path:
    """Forty notebooks: twenty different ones, ten exact copies, five renamed, five that are none."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for n in range(20):
        (folder / f"own{n:02d}.ipynb").write_bytes(notebook(*program(n)))
    for n in range(10):
        (folder / f"copy{n:02d}.ipynb").write_bytes(notebook(*program(n), outputs=False))
    for n in range(5):
        renamed = [cell.replace("table", "tbl").replace(f"frame_{n}", f"df_{n}") for cell in program(n)]
        (folder / f"renamed{n:02d}.ipynb").write_bytes(notebook(*renamed, outputs=False))
    for n in range(5):
        (folder / f"broken{n:02d}.ipynb").write_bytes(notebook(*program(n))[: 200 + n])
    return folder


Mutate = Callable[[bytes], bytes]
