"""Do real notebooks give the same outputs through the provisioner? `python benchmarks/compare_notebooks.py FOLDER`

Each notebook (`*.ipynb` below FOLDER, Python 3) is run by unmodified nbclient or papermill, errors allowed, with the
plain kernel and with a forked one, in a fresh copy each of its folder. With `--manifest` and `--tables` the folder is
as in the notebook's repository, as far as tables are there. Equal means: cell by cell the same outputs, with times,
ids and addresses normalised, and the same exception types. Where they differ, the plain kernel runs it once more:
what differs from itself is not reproducible, and is counted apart. Exit code 1 if any differ otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

NORMALISED = [
    (r"0x[0-9a-f]{6,}", "0x"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "uuid"),
    (r"T_[0-9a-f]{5}", "T_"),  # pandas' Styler
    (r"sk-container-id-\d+", "sk"),
    (r"/tmp/\S+", "/tmp"),
    (r"ipykernel_\d+", "ipykernel"),
    (r"\d+(\.\d+)?(e[+-]\d+)? ?(ns|us|µs|μs|ms|s|min|secs?|seconds)\b", "time"),
    (r"\d{1,2}:\d{2}:\d{2}(\.\d+)?", "time"),
    (r"\d{4}-\d{2}-\d{2}", "date"),
    (r"[\d,]+ loops?", "loops"),
    (r"\x1b\[[0-9;]*m", ""),
]


def normal(text: str) -> str:
    for pattern, replacement in NORMALISED:
        text = re.sub(pattern, replacement, text)
    return text


def seen(notebook: nbformat.NotebookNode) -> list[str]:
    """The outputs of each code cell as one normalised text; of errors their types."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        parts: dict[str, str] = {}
        for output in cell.outputs:
            if output.output_type == "error":
                parts["error"] = output.ename
            elif output.output_type == "stream":
                if output.name == "stdout":  # warnings on stderr name files and lines of libraries
                    parts["stdout"] = parts.get("stdout", "") + output.text
            else:
                parts["data"] = parts.get("data", "") + json.dumps(output.data, sort_keys=True, ensure_ascii=False)
        cells.append(normal(json.dumps(parts, sort_keys=True, ensure_ascii=False)))
    return cells


def read(path: Path) -> nbformat.NotebookNode | str:
    """The notebook, or why it is not run."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:
        return f"not read: {type(error).__name__}"
    described = [notebook.metadata.get(name) for name in ("kernelspec", "language_info")]
    spec, info = (each if isinstance(each, dict) else {} for each in described)
    language, version = spec.get("language") or "python", str(info.get("version", "3"))
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    if (
        language.lower() != "python"
        or version.startswith("2")
        or any(re.search(r"^\s*print [^(=]", s, re.M) for s in sources)
    ):
        return "not Python 3"
    if not sources:
        return "no code"
    if any(re.search(r"pip3? install|conda install|apt|input\(|git clone|wget|curl", source) for source in sources):
        return "installs or downloads"
    return notebook


@dataclass
class Place:
    """Where a notebook belongs: a repository's tables, and its own folder among them."""

    tables: Path | None = None
    folder: str = "."

    @contextlib.contextmanager
    def copy(self) -> Iterator[Path]:
        """A fresh copy of the repository; gives the notebook's folder in it."""
        root = Path(tempfile.mkdtemp(prefix="compare-"))
        try:
            if self.tables is not None:
                shutil.copytree(self.tables, root, dirs_exist_ok=True)
            (root / self.folder).mkdir(parents=True, exist_ok=True)
            yield root / self.folder
        finally:
            shutil.rmtree(root, ignore_errors=True)


def places(manifest: Path | None, tables: Path | None) -> dict[str, Place]:
    """By the notebook's file name."""
    found = {}
    for line in manifest.read_text().splitlines() if manifest else []:
        row = json.loads(line)
        repository = tables / row["repo"].replace("/", "+") if tables else None
        there = repository if repository is not None and repository.is_dir() else None
        found[row["file"]] = Place(there, str(Path(row["path"]).parent))
    return found


def run(place: Place, notebook: nbformat.NotebookNode, kernel: str, engine: str, timeout_s: float) -> list[str] | str:
    """What was seen, or why it did not end."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    with place.copy() as folder:
        try:
            if engine == "papermill":
                return run_papermill(folder, notebook, kernel, timeout_s)
            resources = {"metadata": {"path": str(folder)}}
            NotebookClient(
                notebook, kernel_name=kernel, timeout=timeout_s, allow_errors=True, resources=resources
            ).execute()
            return seen(notebook)
        except (CellTimeoutError, DeadKernelError) as error:
            return type(error).__name__


def run_papermill(folder: Path, notebook: nbformat.NotebookNode, kernel: str, timeout_s: float) -> list[str]:
    """It stops at the first error."""
    import papermill

    nbformat.write(notebook, folder / "in.ipynb")
    with contextlib.suppress(papermill.exceptions.PapermillExecutionError):
        papermill.execute_notebook(
            folder / "in.ipynb",
            folder / "out.ipynb",
            cwd=folder,
            kernel_name=kernel,
            progress_bar=False,
            execution_timeout=int(timeout_s),
        )
    return seen(nbformat.read(folder / "out.ipynb", 4))


def compare(path: Path, place: Place, forked: str, engine: str, timeout_s: float) -> tuple[str, str]:
    """(verdict, detail) of one notebook."""
    notebook = read(path)
    if isinstance(notebook, str):
        return "not run", notebook
    plain = run(place, notebook, "python3", engine, timeout_s)
    if isinstance(plain, str):
        return "not run", plain
    errors = sum('"error"' in cell for cell in plain)
    ran = f"with {errors} errors" if errors else "without an error"
    ours = run(place, notebook, forked, engine, timeout_s)
    if ours == plain:
        return f"equal, {'with' if errors else 'without'} errors", ran
    again = run(place, notebook, "python3", engine, timeout_s)
    if isinstance(ours, str) or isinstance(again, str):
        return "out of time" if again != plain else "differs", str(ours if isinstance(ours, str) else again)
    unstable = {n for n, (a, b) in enumerate(zip(plain, again, strict=True)) if a != b}
    different = [n for n, (a, b) in enumerate(zip(plain, ours, strict=True)) if a != b and n not in unstable]
    if different:
        return "differs", f"cell {different[0]}: {plain[different[0]][:300]} | {ours[different[0]][:300]}"
    kind = "equal but for cells that the plain kernel does not repeat"
    return f"{kind}, {'with' if errors else 'without'} errors", f"{len(unstable)} such cells, {ran}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kernel", default="python3-forked", help="from `jupyter-env kernelspec install`")
    parser.add_argument("--engine", choices=["nbclient", "papermill"], default="nbclient")
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS", help="of a cell")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="JSON lines: file, repo, path")
    parser.add_argument("--tables", type=Path, metavar="FOLDER", help="of owner+repository folders")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N notebooks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts there")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    paths = sorted(arguments.folder.rglob("*.ipynb"))[: arguments.limit]
    known = places(arguments.manifest, arguments.tables)
    verdicts: dict[str, tuple[str, str]] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for path in progress.track(paths, description="notebooks"):
            place = known.get(path.name, Place())
            verdict = compare(path, place, arguments.kernel, arguments.engine, arguments.timeout)
            verdicts[str(path.relative_to(arguments.folder))] = verdict
            if arguments.json:
                arguments.json.write_text(json.dumps(verdicts, indent=1))
    table = Table("verdict", "notebooks")
    for kind in sorted({verdict for verdict, _ in verdicts.values()}):
        table.add_row(kind, str(sum(verdict == kind for verdict, _ in verdicts.values())))
    console = Console()
    console.print(table)
    for name, (verdict, detail) in verdicts.items():
        if verdict == "differs":
            console.print(f"{name}: {detail}", markup=False)
    sys.exit(any(verdict == "differs" for verdict, _ in verdicts.values()))


if __name__ == "__main__":
    main()
