"""What a simulating model may reply: one output cell, with a status and, where it failed, a traceback like Python's."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Set
from typing import Any, cast, get_args

import msgspec

from jupyter_env.action import split_reasoning
from jupyter_env.interpreters.base import Status
from jupyter_env.interpreters.certain import Certain

_TAGS = "output_cell|python_cell|executed_cells|reference_notebook|available_files|cell_to_execute"
_TAG = re.compile(rf"<(?=/?(?:{_TAGS})\b)")
_OPENING = re.compile(r"<output_cell(?:\s+status\s*=\s*[\"']?(\w*)[\"']?)?\s*>")
_CLOSING = "</output_cell>"
_FENCED = re.compile(r"\A```\w*\n(.*?)\n?```\Z", re.DOTALL)
_LAST_LINE = re.compile(r"([A-Za-z_][\w.]*)(?:: ?(.*))?\Z", re.DOTALL)
_TRACEBACK = re.compile(
    r"^(?:Traceback \(most recent call last\):|-{20,}\n\w+ +Traceback \(most recent call last\))", re.M
)
_SYNTAX = re.compile(r"^ *(?:File|Cell) .*\bline \d+(?=(?:.*\n)+(?:Syntax|Indentation|Tab)Error\b)", re.MULTILINE)
"""An error of syntax has frames but no such heading."""
_NOTES = {
    "timeout": "The cell was interrupted at its time limit. Variables set before are kept.",
    "out_of_memory": "The cell needed more memory than there is.",
    "kernel_died": "The kernel died. All variables are lost.",
}
_CODE = re.compile(r"^`{3,}python\n(.*?)\n`{3,}$|<python_cell>\n(.*?)\n</python_cell>", re.DOTALL | re.MULTILINE)
_SECRET_CHARS = 20
_LEAKED_LINES = 2
"""One long line of the reference's code can be in an output by chance, in a traceback say; two are copied."""


class BadReply(Exception):
    """A reply that is no output cell, or one that contradicts Python; the message says how, for the model."""


class SimulatedReply(msgspec.Struct, frozen=True):
    """A valid reply, as a kernel would have given it."""

    status: Status
    outputs: list[dict[str, Any]]
    """In nbformat 4's form."""
    note: str = ""
    """What is said after the outputs, as a kernel's interpreter does."""

    @classmethod
    def of_error(cls, line: str, where: str = "") -> SimulatedReply:
        """A cell that nothing but this exception came of; `line` is like `NameError: name 'x' is not defined`."""
        frames = ["Traceback (most recent call last):", *([where] if where else []), line]
        return cls("code_error", [_error("\n".join(frames))])


def escaped(text: str) -> str:
    """Foreign text with our tags made harmless, so that it ends no section of the prompt and no output cell."""
    return _TAG.sub("‹", text)


def secret_lines(reference: str | None) -> frozenset[str]:
    """The lines of a reference notebook's code that no output may show: its outputs may be, and short lines are common.

    The code is what stands in fences or `<python_cell>` tags; a text without either is code itself if Python parses it.
    """
    if not reference:
        return frozenset()
    blocks = [block for found in _CODE.findall(reference) for block in found]
    if not any(blocks):
        try:
            ast.parse(reference)
        except (SyntaxError, ValueError, RecursionError):
            return frozenset()
        blocks = [reference]
    lines = (line.strip() for block in blocks for line in block.splitlines())
    return frozenset(line for line in lines if len(line) >= _SECRET_CHARS)


def read_reply(said: str, certain: Certain, secret: Set[str], cut: bool) -> SimulatedReply:
    """The reply in a model's message.

    Args:
        certain: what Python settles about the cell.
        secret: lines that no output may show.
        cut: the message ended at the token limit.

    Raises:
        BadReply: there is none.
    """
    if cut:
        raise BadReply("it was cut at the token limit; write long outputs only in part")
    given, body = _cell(split_reasoning(said)[1])
    status = _status(given, body)
    if status == "ok" and certain.error is not None:
        raise BadReply(f"the cell must end with {certain.error!r} and status code_error")
    outputs: list[dict[str, Any]] = []
    printed = body
    if status == "code_error":
        found = list(_TRACEBACK.finditer(body)) or list(_SYNTAX.finditer(body))[:1]
        if not found:
            raise BadReply('status code_error needs "Traceback (most recent call last):" and the exception at the end')
        printed, failed = body[: found[-1].start()], _error(body[found[-1].start() :])
        _check_error(failed, certain)
        outputs.append(failed)
    if printed.strip("\n"):
        outputs.insert(0, {"output_type": "stream", "name": "stdout", "text": printed.strip("\n") + "\n"})
    _check_secret(body, secret)
    return SimulatedReply(status, outputs, _NOTES.get(status, ""))


def _cell(text: str) -> tuple[str | None, str]:
    """Status as it was given, and body. Prose around the cell is dropped, whatever the body holds is kept."""
    opening = _OPENING.search(text)
    if opening is None:
        raise BadReply("it holds no <output_cell>")
    end = text.rfind(_CLOSING)  # the last: data may hold the tag, where the model did not escape it
    if end < opening.end():
        raise BadReply("its <output_cell> is not closed")
    body = text[opening.end() : end]
    if re.search(r"<output_cell\b|</?(?:python_cell|cell_to_execute|executed_cells)>", body):
        raise BadReply("it holds more than one cell")
    body = body.strip("\n")
    if fenced := _FENCED.match(body):
        body = fenced[1]
    return opening[1], body


def _status(given: str | None, body: str) -> Status:
    """The status, told from the body where the reply leaves it out."""
    if not given:
        return "code_error" if _ends_in_exception(body) else "ok"
    if given not in get_args(Status) or given == "infrastructure_error":
        raise BadReply(f"there is no status {given!r}")
    return cast(Status, given)


def _ends_in_exception(body: str) -> bool:
    found = list(_TRACEBACK.finditer(body))
    return bool(found) and _LAST_LINE.match(_last_line(body)) is not None


def _last_line(text: str) -> str:
    """The exception: the last line that is not indented, with what follows it (messages can have many lines)."""
    lines = text.rstrip().splitlines()
    start = next((n for n in range(len(lines) - 1, -1, -1) if _names_exception(lines[n])), len(lines) - 1)
    return "\n".join(lines[start:]) if lines else ""


def _names_exception(line: str) -> bool:
    found = re.match(r"([A-Za-z_][\w.]*)(?::|\Z)", line)
    return found is not None and _is_exception(found[1])


def _is_exception(name: str) -> bool:
    """Whether it can be an exception's class: Python's own are known, a library's are named like one."""
    known = getattr(builtins, name, None)
    if known is not None:
        return isinstance(known, type) and issubclass(known, BaseException)
    return name.rpartition(".")[2][:1].isupper() or "." in name


def _error(traceback: str) -> dict[str, Any]:
    found = _LAST_LINE.match(_last_line(traceback))
    name, value = (found[1], found[2] or "") if found else ("", "")
    return {
        "output_type": "error",
        "ename": name.rpartition(".")[2],
        "evalue": value.strip(),
        "traceback": traceback.rstrip().splitlines(),
    }


def _check_error(error: dict[str, Any], certain: Certain) -> None:
    if not error["ename"] or not _names_exception(_last_line("\n".join(error["traceback"]))):
        raise BadReply("its traceback does not end with an exception's name and message, like KeyError: 'x'")
    if certain.error is not None and certain.whole and error["ename"] != certain.error.partition(":")[0]:
        raise BadReply(f"the cell must end with {certain.error!r}")
    if error["ename"] == "FileNotFoundError":
        value = str(error["evalue"])
        if wrongly := next((name for name in certain.existing if f"'{name}'" in value or f'"{name}"' in value), None):
            raise BadReply(f"{wrongly} exists")


def _check_secret(body: str, secret: Set[str]) -> None:
    if sum(line.strip() in secret for line in set(body.splitlines())) >= _LEAKED_LINES:
        raise BadReply("it shows the reference notebook, which no code can print")
