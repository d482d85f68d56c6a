"""The prompts: text files with a version in their first line, filled in one pass.

What is filled in is never looked at for slots or braces again: a notebook full of `{{name}}` and `{}` stays as it is.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

import msgspec

FOLDER = Path(__file__).parent / "prompts"

_SLOT = re.compile(r"\{\{(\w+)\}\}")


class Prompt(msgspec.Struct, frozen=True):
    """One prompt."""

    name: str
    version: int
    text: str

    @property
    def identity(self) -> str:
        """Name, version and the text's hash: an edit without a new version is another prompt too."""
        return f"{self.name} {self.version} {hashlib.sha256(self.text.encode()).hexdigest()[:16]}"

    def fill(self, **values: str) -> str:
        """The text with its slots filled.

        Raises:
            KeyError: a slot has no value, or a value no slot.
        """
        slots = set(_SLOT.findall(self.text))
        if slots != set(values):
            raise KeyError(f"prompt {self.name} has the slots {sorted(slots)}, got {sorted(values)}")
        return _SLOT.sub(lambda slot: values[slot[1]], self.text)


@cache
def prompt(name: str) -> Prompt:
    """The prompt of a file `prompts/NAME.txt`.

    Raises:
        ValueError: its first line is not `version N`.
    """
    first, _, text = (FOLDER / f"{name}.txt").read_text("utf-8").partition("\n")
    match = re.fullmatch(r"version (\d+)", first.strip())
    if match is None:
        raise ValueError(f"{FOLDER / name}.txt: the first line is `version N`, got {first[:60]!r}")
    return Prompt(name, int(match[1]), text)
