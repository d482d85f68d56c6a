"""Twelve notebooks written for the tests, and sixty questions about them labelled by hand.

The notebooks were written for these tests (no one published them) and executed with nbclient over tables that ship in
packages: `python tests/pipeline/authored.py` writes `files/authored/` anew. The two over DABench's tables are executed
when a test asks for them, since those tables are not part of the project.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jupyter_env.tasksets.tables import embedded_tables

FILES = Path(__file__).parent / "files"


class Source(NamedTuple):
    """A notebook before it was executed."""

    name: str
    slug: str
    table: str
    """Of the package that ships it, or of DABench."""
    licence: str
    cells: list[tuple[str, str]]
    """(kind, text)."""

    @property
    def path(self) -> str:
        """Where code finds the table."""
        return f"data/authored+{self.slug}/{Path(self.table).name}"


def sources(file: str = "authored.txt") -> list[Source]:
    found = []
    for part in (FILES / file).read_text("utf-8").split("=== ")[1:]:
        head, _, body = part.partition("\n")
        name, slug, table, licence = (word.strip() for word in head.split("|"))
        kinds = ("markdown", "code")
        cells = [(kinds[n % 2], text.strip("\n")) for n, text in enumerate(body.split("\n---\n"))]
        found.append(Source(name, slug, table, licence, cells))
    return found


def lay_out_tables(data: Path, chosen: list[Source], tables: Path | None = None) -> None:
    """The tables as data sets: `authored+SLUG/FILE`.

    Args:
        tables: where they lie; None takes them from the installed packages.
    """
    with tempfile.TemporaryDirectory() as folder:
        if tables is None:
            embedded_tables(Path(folder))
        for source in chosen:
            target = data / f"authored+{source.slug}" / Path(source.table).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile((tables or Path(folder)) / source.table, target)


def execute(source: Source, table: Path) -> bytes:
    """Run a notebook with nbclient where its table is; its bytes."""
    import nbformat
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "input" / source.slug
        place.mkdir(parents=True)
        shutil.copyfile(table, place / table.name)
        (Path(folder) / "working").mkdir()
        new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
        cells = [new[kind](text) for kind, text in source.cells]
        book = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
        NotebookClient(book, resources={"metadata": {"path": f"{folder}/working"}}, timeout=120).execute()
        for number, cell in enumerate(book.cells):
            cell["id"] = f"cell-{number}"
            cell["metadata"] = {}
        book.metadata = {"language_info": {"name": "python", "version": "3.11"}, "authored": "for the tests"}
        return nbformat.writes(book).encode() + b"\n"


def write_inputs(folder: Path, data: Path, chosen: list[Source] | None = None) -> None:
    """The executed notebooks with their manifest, as a folder to read, and their tables."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = sources() if chosen is None else chosen
    lay_out_tables(data, chosen)
    lines = []
    for source in chosen:
        shutil.copyfile(FILES / "authored" / f"{source.name}.ipynb", folder / f"{source.name}.ipynb")
        lines.append(manifest_line(source))
    (folder / "manifest.jsonl").write_text("".join(lines))


def manifest_line(source: Source) -> str:
    repo = f"authored/{source.slug}"
    about = {"file": f"{source.name}.ipynb", "repo": repo, "path": f"notebooks/{source.name}.ipynb"}
    return json.dumps({**about, "license": source.licence}) + "\n"


class Labelled(NamedTuple):
    """A question as the scripted model writes it, with what a person says of it."""

    notebook: str
    label: str
    """`right`, `wrong`, `trivial` or `ambiguous`."""
    draft: dict[str, Any]
    reads: dict[str, Any]
    """What a careful second reader says who sees the notebook."""
    blind: list[str]
    """What is guessed without the files."""


@cache
def labelled(file: str = "labelled.jsonl") -> list[Labelled]:
    lines = (FILES / file).read_text("utf-8").splitlines()
    return [Labelled(**json.loads(line)) for line in lines]


def main() -> None:
    out = FILES / "authored"
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as data:
        chosen = sources()
        lay_out_tables(Path(data), chosen)
        for source in chosen:
            table = Path(data) / f"authored+{source.slug}" / Path(source.table).name
            (out / f"{source.name}.ipynb").write_bytes(execute(source, table))


if __name__ == "__main__":
    main()
