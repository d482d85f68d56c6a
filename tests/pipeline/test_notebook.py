"""Files to cells: what is mended, what is rejected and why."""

import json
from pathlib import Path

import nbformat
import pytest
from runs import notebook, shared

from pipeline.notebook import NotebookError, parse, parse_full


def test_every_real_notebook_parses_as_nbformat_reads_it() -> None:
    folder = shared("notebooks")
    compared = 0
    for path in sorted(folder.glob("*.ipynb")):
        raw = path.read_bytes()
        try:
            expected = nbformat.reads(raw, as_version=4)
        except Exception:  # noqa: S112 - what nbformat refuses is looked at below
            continue
        cells = [cell["source"] for cell in expected["cells"] if cell["cell_type"] == "code"]
        try:
            assert parse(raw).code == cells, path.name
        except NotebookError as error:
            assert error.reason == "no_cells", path.name
            assert not cells
        compared += 1
    assert compared > 190


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty", "empty_file"),
        ("lfs_pointer", "lfs_pointer"),
        ("list_top", "not_a_notebook"),
        ("null_cells", "no_cells"),
        ("truncated", "truncated_json"),
        ("bom", None),
        ("r_kernel_label", None),
        ("tag_injection", None),
    ],
)
def test_odd_files(name: str, reason: str | None) -> None:
    raw = (shared("odd_notebooks") / f"{name}.ipynb").read_bytes()
    if reason is None:
        assert parse(raw).code
        assert [c.source for c in parse_full(raw).cells] == [c.source for c in parse(raw).cells]
    else:
        for read in (parse, parse_full):
            with pytest.raises(NotebookError) as caught:
                read(raw)
            assert caught.value.reason == reason


@pytest.mark.parametrize("version", [2, 3])
def test_old_versions(version: int) -> None:
    cells = [
        {"cell_type": "heading", "level": 2, "source": ["Title"]},
        {
            "cell_type": "code",
            "input": ["x = 1", "x"] if version == 2 else ["x = 1\n", "x"],
            "outputs": [{"output_type": "pyout", "text": ["1"], "prompt_number": 1}],
        },
        {
            "cell_type": "code",
            "input": "1/0",
            "outputs": [{"output_type": "pyerr", "ename": "ZeroDivisionError", "evalue": "e"}],
        },
    ]
    raw = json.dumps({"nbformat": version, "metadata": {}, "worksheets": [{"cells": cells}]}).encode()
    found = parse_full(raw)
    assert parse(raw).nbformat == version
    assert parse(raw).code == ["x = 1\nx", "1/0"]
    assert found.cells[0].source == "## Title"
    assert found.cells[1].outputs == [{"output_type": "execute_result", "data": {"text/plain": "1"}}]
    assert [output.output_type for output in parse(raw).cells[2].outputs] == ["error"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_encodings(encoding: str) -> None:
    raw = notebook("naïve = 'façade'").decode().replace("\\u00ef", "ï").replace("\\u00e7", "ç").encode(encoding)
    assert parse(raw).code == ["naïve = 'façade'"]


def test_what_python_writes_and_json_forbids() -> None:
    raw = notebook("x = 1", score=1).replace(b'"score": 1', b'"score": NaN').replace(b"42", b"\\ud83d half")
    assert parse(raw).code == ["x = 1"]
    assert "\ufffd" in parse_full(raw).cells[0].outputs[0]["text"] or "?" in parse_full(raw).cells[0].outputs[0]["text"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"<!DOCTYPE html><html></html>", "html"),
        (b"\n  <html>", "html"),
        (b'{"a": 1}', "not_a_notebook"),
        (b'{"cells": 3, "nbformat": 4}', "not_a_notebook"),
        (b"just text", "invalid_json"),
        (b'{"cells": [' + b"[" * 100_000, "invalid_json"),
        (b"\0" * 4096, "empty_file"),
        (notebook("x = 1")[:-20], "truncated_json"),
        (notebook("x = 'a long line'")[:120], "truncated_json"),
    ],
)
def test_reasons(raw: bytes, reason: str) -> None:
    with pytest.raises(NotebookError) as caught:
        parse(raw)
    assert caught.value.reason == reason


def test_cells_of_any_make() -> None:
    cells = [
        None,
        3,
        {"cell_type": "code"},
        {"cell_type": "code", "source": None, "outputs": None},
        {"cell_type": "code", "source": ["a", 1, "b"]},
    ]
    raw = json.dumps(
        {"nbformat": 4.2, "cells": cells, "metadata": {"language_info": {"name": 7}, "kernelspec": "x"}}
    ).encode()
    assert parse(raw).code == ["", "", "ab"]
    assert parse(raw).language == ""


def test_language_is_what_ran() -> None:
    assert parse(notebook("x", language="R")).language == "r"
    assert parse(notebook("x", kernelspec={"language": "R", "name": "ir"})).language == "python"
    named = json.dumps({"nbformat": 4, "cells": [], "metadata": {"kernelspec": {"name": "python3"}}}).encode()
    assert parse(named).language == "python"


def test_a_picture_is_cut_short_and_nothing_else_is(tmp_path: Path) -> None:
    cell = {
        "cell_type": "code",
        "source": 'print({"image/png": "' + "A" * 200 + '"})',
        "outputs": [
            {"output_type": "display_data", "data": {"image/png": "iVBOR" + "A" * 300, "text/plain": "<Figure>"}},
            {
                "output_type": "display_data",
                "data": {"image/png": ["AA\n", "B" * 300], "image/svg+xml": 'a"' + "c" * 300},
            },
            {"output_type": "stream", "name": "stdout", "text": '"image/png": "' + "D" * 300 + '"'},
        ],
    }
    for indent in (None, 1):
        raw = json.dumps({"nbformat": 4, "metadata": {}, "cells": [cell]}, indent=indent).encode()
        found = parse_full(raw).cells[0]
        assert found.source == cell["source"]
        assert found.outputs[0]["data"] == {"image/png": "iVBOR" + "A" * 59, "text/plain": "<Figure>"}
        assert found.outputs[1:] == cell["outputs"][1:]  # type: ignore[index]


def test_twelve_megabytes_of_output() -> None:
    raw = json.dumps(
        {
            "nbformat": 4,
            "metadata": {},
            "cells": [
                {"cell_type": "code", "source": "x", "outputs": [{"output_type": "stream", "text": "y\n" * 6_000_000}]}
            ],
        }
    ).encode()
    assert parse(raw).code == ["x"]
    assert len(parse_full(raw).cells[0].outputs[0]["text"]) == 12_000_000
