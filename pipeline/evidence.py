"""Is an answer really in the output that is named for it?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from jupyter_env.answer import Answer, Date, Integer, ListOf, Number, Text, verify
from jupyter_env.literals import fold

_NUMBER = re.compile(r"(?<![\d.])[-−]?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_MOMENT = re.compile(
    r"\d{4}-\d{2}(?:-\d{2})?(?:[ T]\d{2}:\d{2}(?::\d{2})?)?|\b\d{4}\b|\d{1,2} \w+ \d{4}|\w+ \d{1,2}, \d{4}"
)


def missing_evidence(answer: Answer, evidence: str, output: str) -> str | None:
    """What of the answer the output does not hold; none where all is there.

    Args:
        evidence: the piece of the output that is said to hold it, as the model copied it.
        output: as the model saw it.
    """
    if _squeezed(evidence) not in _squeezed(output):
        return f"the quoted text is not in that output: {evidence[:120]!r}"
    for item in answer.items if isinstance(answer, ListOf) else (answer,):
        if not any(verify(text, item).correct for text in _readings(item, output)):
            return f"that output does not hold {item}"[:300]
    return None


def _squeezed(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _readings(item: Answer, output: str) -> Iterator[str]:
    """Texts of the output that could be this value."""
    match item:
        case Number(unit=unit) | Integer(unit=unit):
            for text in _NUMBER.findall(output):
                plain = text.replace("$", "").replace("−", "-")
                yield plain
                if unit == "%":  # shares are often printed as such
                    yield repr(100 * float(plain.replace(",", "")))
        case Date():
            for text in _MOMENT.findall(output):
                yield text
        case Text(value=value, aliases=aliases):
            words = " ".join(fold(line) for line in output.split("\n"))
            for name in (value, *aliases):
                if re.search(rf"(?<!\w){re.escape(fold(name))}(?!\w)", words):
                    yield name
        case _:
            return
