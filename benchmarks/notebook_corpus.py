"""A corpus of notebooks whose duplicates are known, made from real ones, for benchmarks/pipeline.py.

Bases: each distinct real notebook with code, and recombinations of real cells: every recombination opens with the
imports of one notebook (negatives share boilerplate), and half of them with the loading and cleaning cells of one
competition, up to 40% of their lines (negatives from one competition). Copies
of a base: exact, outputs, small, rename, append, delete, markdown, format, combo; three in ten are copies of a copy
(chained forks). Cluster sizes are heavy-tailed.
"""

from __future__ import annotations

import ast
import copy
import json
import keyword
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.notebook import NotebookError, parse

Notebook = dict[str, Any]
Cell = dict[str, Any]

MUTATIONS = ("exact", "outputs", "small", "rename", "append", "delete", "markdown", "format", "combo")


def real_notebooks(folder: Path) -> list[Notebook]:
    """The notebooks of a folder that have code and are nbformat 4 JSON, sources as strings."""
    found = []
    for path in sorted(folder.glob("*.ipynb")):
        raw = path.read_bytes()
        try:
            if len([code for code in parse(raw).code if code.strip()]) < 3 or parse(raw).nbformat < 4:
                continue
            notebook = json.loads(raw)
        except (NotebookError, ValueError):
            continue
        for cell in notebook["cells"]:
            source = cell.get("source", "")
            cell["source"] = source if isinstance(source, str) else "".join(source)
        found.append(notebook)
    return found


LARGEST_CELL = 25
"""Lines; a cell that fills a notebook would make two recombinations of it copies in truth."""
SHARED = 0.4
"""The largest share of its lines that a recombination may have in common with another by design."""


def distinct(notebooks: list[Notebook]) -> list[Notebook]:
    """Those less than half of whose distinct lines, as they stand, are in an earlier one: others may be real copies."""
    kept: list[tuple[Notebook, set[str]]] = []
    for notebook in notebooks:
        code = "\n".join(cell["source"] for cell in notebook["cells"] if _is_code(cell))
        lines = {line.strip() for line in code.split("\n") if line.strip()}
        if all(len(lines & other) < 0.5 * min(len(lines), len(other)) for _, other in kept):
            kept.append((notebook, lines))
    return [notebook for notebook, _ in kept]


class Corpus:
    """Makes the notebooks one by one, always the same for a seed.

    Args:
        real: what they are made from.
        count: how many notebooks.
        clusters: how many of them are distinct.
        outputs: False leaves the outputs out, which are most of the bytes.
    """

    def __init__(self, real: list[Notebook], count: int, clusters: int, seed: int = 0, *, outputs: bool = True) -> None:
        if not outputs:
            real = [{**notebook, "cells": [{**cell, "outputs": []} for cell in notebook["cells"]]} for notebook in real]
        self.real, self.count, self.clusters, self.seed = distinct(real), count, clusters, seed
        self.openings = [imports for notebook in real if (imports := _opening(notebook))]
        cells = [cell for notebook in real for cell in notebook["cells"] if _is_code(cell)]
        self.cells = [cell for cell in cells if 2 <= _lines(cell) <= LARGEST_CELL]
        self.competitions = [notebook for notebook in real if _reads(notebook) and len(notebook["cells"]) > 15]

    def __iter__(self) -> Iterator[tuple[int, str, Notebook]]:
        """(true cluster, how it was made, notebook), shuffled within the whole."""
        rng = random.Random(self.seed)
        weights = [1 / (rank + 3) ** 0.9 for rank in range(self.clusters)]
        extra = rng.choices(range(self.clusters), weights, k=self.count - self.clusters)
        sizes = [1] * self.clusters
        for cluster in extra:
            sizes[cluster] += 1
        order = [cluster for cluster, size in enumerate(sizes) for _ in range(size)]
        rng.shuffle(order)
        copies: dict[int, list[Notebook]] = {}
        for number, cluster in enumerate(order):
            made = copies.setdefault(cluster, [])
            if not made:
                base = self._base(cluster)
                made.append(base)
                yield cluster, "base", base
                continue
            source = made[-1] if rng.random() < 0.3 else made[0]
            kind = rng.choice(MUTATIONS)
            mutated = mutate(source, kind, random.Random(self.seed * 1_000_003 + number), self.cells)
            if len(made) < 4:
                made.append(mutated)
            else:
                made[-1] = mutated
            yield cluster, kind, mutated

    def _base(self, cluster: int) -> Notebook:
        if cluster < len(self.real):
            return self.real[cluster]
        rng = random.Random(f"{self.seed} base {cluster}")
        cells = copy.deepcopy(rng.choice(self.openings))
        if rng.random() < 0.5:
            cells += _beginning(rng.choice(self.competitions), rng)
        have = sum(map(_lines, cells))
        target = max(rng.randint(60, 200), int(have / SHARED))
        while have < target:
            cell = rng.choice(self.cells)
            cells.append(cell)
            have += _lines(cell)
            if rng.random() < 0.5:
                cells.append({"cell_type": "markdown", "metadata": {}, "source": f"## Step {len(cells)}"})
        return {"nbformat": 4, "nbformat_minor": 4, "metadata": self.real[0]["metadata"], "cells": cells}


def _is_code(cell: Cell) -> bool:
    return bool(cell["cell_type"] == "code" and cell["source"].strip())


def _lines(cell: Cell) -> int:
    return sum(bool(line.strip()) for line in cell["source"].split("\n")) if cell["cell_type"] == "code" else 0


def _opening(notebook: Notebook) -> list[Cell]:
    cells = [cell for cell in notebook["cells"][:6] if _is_code(cell) and "import " in cell["source"]]
    return [cell for cell in cells if _lines(cell) <= LARGEST_CELL][:2]


def _reads(notebook: Notebook) -> bool:
    return any("read_csv" in cell["source"] for cell in notebook["cells"][:12])


def _beginning(notebook: Notebook, rng: random.Random) -> list[Cell]:
    """The first cells up to some 30 to 60 lines of code."""
    cells, have, most = [], 0, rng.randint(30, 60)
    for cell in notebook["cells"]:
        if have + _lines(cell) > most:
            break
        cells.append(cell)
        have += _lines(cell)
    return cells


def mutate(notebook: Notebook, kind: str, rng: random.Random, pool: list[Cell]) -> Notebook:
    """A copy of a notebook, changed in one way, or in several (`combo`)."""
    copied = {**notebook, "cells": [{**cell} for cell in notebook["cells"]]}
    kinds = ("rename", "small", "append", "format", "outputs") if kind == "combo" else (kind,)
    for step in kinds:
        _STEPS[step](copied, rng, pool)
    return copied


def _exact(notebook: Notebook, rng: random.Random, pool: list[Cell]) -> None:
    pass


def _outputs(notebook: Notebook, rng: random.Random, pool: list[Cell]) -> None:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = cell.get("outputs", [])[:1] if rng.random() < 0.5 else []


def _small(notebook: Notebook, rng: random.Random, pool: list[Cell]) -> None:
    """One to three lines get another number or another word in a string."""
    for _ in range(rng.randint(1, 3)):
        cell = rng.choice([cell for cell in notebook["cells"] if _is_code(cell)])
        lines = cell["source"].split("\n")
        index = rng.randrange(len(lines))
        line = re.sub(r"\d+", lambda match: str(int(match[0]) + 1), lines[index], count=1)
        lines[index] = line if line != lines[index] else line + f"  # {rng.randint(0, 999)}"
        cell["source"] = "\n".join(lines)


def _rename(notebook: Notebook, rng: random.Random, pool: list[Cell]) -> None:
    """Every name that the notebook assigns gets another, in code only, attributes and strings aside."""
    names: set[str] = set()
    for cell in notebook["cells"]:
        if _is_code(cell):
            try:
                tree = ast.parse(cell["source"])
            except SyntaxError:
                continue
            names |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names = {name for name in names if not keyword.iskeyword(name) and len(name) > 1}
    if not names:
        return
    new = {name: f"{rng.choice(('my', 'new', 'x', 'tmp', 'a'))}_{name[::-1]}" for name in sorted(names)}
    pattern = re.compile(
        r"(?<![\w.'\"])(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + r")(?![\w'\"])"
    )
    for cell in notebook["cells"]:
        if _is_code(cell):
            cell["source"] = pattern.sub(lambda match: new[match[1]], cell["source"])


def _append(notebook: Notebook, rng: random.Random, pool: list[Cell]) -> None:
    have = sum(map(_lines, notebook["cells"]))
    fitting = [cell for cell in rng.sample(pool, min(len(pool), 30)) if _lines(cell) <= max(2, have // 10)]
    for cell in fitting[: rng.randint(1, 2)]:
        notebook["cells"].insert(rng.randint(1, len(notebook["cells"])), cell)


def _delete(notebook: Notebook, rng: random.Random, pool: list[Cell]) -> None:
    have = sum(map(_lines, notebook["cells"]))
    small = [cell for cell in notebook["cells"] if 0 < _lines(cell) <= have // 10]
    for cell in rng.sample(small, min(len(small), rng.randint(1, 2))):
        notebook["cells"].remove(cell)


def _markdown(notebook: Notebook, rng: random.Random, pool: list[Cell]) -> None:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = f"{cell['source'][: rng.randint(0, 80)]} note {rng.randint(0, 10**6)}"
    notebook["cells"].insert(
        0, {"cell_type": "markdown", "metadata": {}, "source": f"# My fork {rng.randint(0, 10**6)}"}
    )


def _format(notebook: Notebook, rng: random.Random, pool: list[Cell]) -> None:
    for cell in notebook["cells"]:
        if _is_code(cell) and rng.random() < 0.7:
            source = (
                re.sub(r",(?=\S)", ", ", cell["source"]) if rng.random() < 0.5 else cell["source"].replace(", ", ",")
            )
            cell["source"] = "# edited\n" + source.replace("\n", "\n\n" if rng.random() < 0.3 else "\n")


_STEPS: dict[str, Callable[[Notebook, random.Random, list[Cell]], None]] = {
    "exact": _exact, "outputs": _outputs, "small": _small, "rename": _rename, "append": _append,
    "delete": _delete, "markdown": _markdown, "format": _format,
}  # fmt: skip


def write_zips(corpus: Corpus, folder: Path, zips: int = 4) -> list[tuple[int, str]]:
    """Write the corpus in Meta Kaggle Code's layout.

    Returns:
        (true cluster, how it was made) by kernel version, which counts from 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth = []
    archives = [
        zipfile.ZipFile(folder / f"code_with_outputs_{index:03d}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        for index in range(zips)
    ]
    for number, (cluster, kind, notebook) in enumerate(corpus):
        version = number
        top = number * zips // corpus.count
        name = f"{top:04d}/{(version // 1000) % 1000:03d}/{version}.ipynb"
        archives[top].writestr(name, json.dumps(notebook))
        truth.append((cluster, kind))
    for archive in archives:
        archive.close()
    return truth
