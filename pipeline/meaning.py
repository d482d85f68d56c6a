"""Do two questions mean the same? They do if they are about the same data, have the same answer, and share their words.

No embedding is needed: two different questions about one table seldom have the same answer, so that the answer, which
is verified, says more than the words. How much the words must share depends on how telling the answer is.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator

import msgspec

from jupyter_env.answer import Answer, Date, Integer, ListOf, Number, Text, reference_text, verify
from jupyter_env.literals import fold

SAME_DATA_TELLING = 0.15
"""Share of words, where the answer has three digits or more, or several items: it is hardly met by chance."""
SAME_DATA = 0.5
OTHER_DATA = 0.75
"""Copies of one table are about under many names."""

_STOP = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "do",
        "does",
        "for",
        "from",
        "give",
        "given",
        "have",
        "has",
        "how",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "no",
        "of",
        "on",
        "or",
        "per",
        "please",
        "that",
        "the",
        "their",
        "there",
        "these",
        "this",
        "those",
        "to",
        "was",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "whose",
        "with",
        "within",
        "you",
        "your",
        "only",
        "all",
        "any",
        "data",
        "dataset",
        "table",
        "file",
        "files",
        "column",
        "columns",
        "value",
        "values",
        "csv",
    ]
)
_SAME = {
    word: group[0]
    for group in (
        ("mean", "average", "avg"),
        ("share", "proportion", "fraction", "percentage", "percent", "ratio", "rate"),
        ("total", "sum", "overall", "altogether"),
        ("highest", "largest", "maximum", "max", "most", "greatest", "biggest", "top"),
        ("lowest", "smallest", "minimum", "min", "least", "fewest"),
        ("many", "number", "count"),
        ("difference", "gap", "differ"),
        ("above", "over", "exceed", "more", "greater", "higher", "larger"),
        ("below", "under", "less", "fewer", "lower", "smaller"),
        ("each", "every"),
    )
    for word in group
}


class Question(msgspec.Struct, frozen=True):
    """What is compared of a question."""

    text: str
    answer: Answer
    data: frozenset[str]
    """Hashes of its files, or names of its data sets where the files are not here."""

    @property
    def words(self) -> frozenset[str]:
        """Its words of content, in one form each."""
        found = re.findall(r"[a-z]+|\d+(?:\.\d+)?", self.text.lower().replace("_", " "))
        stems = (_SAME.get(word) or _SAME.get(stem := _stem(word), stem) for word in found if word not in _STOP)
        return frozenset(stems)


def _stem(word: str) -> str:
    for ending in ("ies", "ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)] + ("y" if ending == "ies" else "")
    return word


def similarity(one: Question, other: Question) -> float:
    """The share of their words that two questions have in common, 0 to 1."""
    together = one.words | other.words
    return len(one.words & other.words) / len(together) if together else 0.0


def mean_the_same(one: Question, other: Question) -> bool:
    """Whether one of them is enough."""
    if not _same_answer(one.answer, other.answer):
        return False
    if not one.data & other.data:
        return similarity(one, other) >= OTHER_DATA
    return similarity(one, other) >= (SAME_DATA_TELLING if _is_telling(one.answer) else SAME_DATA)


def _is_telling(answer: Answer) -> bool:
    match answer:
        case Number(value=value, decimals=decimals):
            return len(f"{abs(value):.{decimals or 0}f}".replace(".", "").strip("0")) >= 3
        case Integer(value=value):
            return len(str(abs(value)).strip("0")) >= 3
        case ListOf(items=items):
            return len(items) >= 3
        case Date(value=value):
            return len(value) >= 10
        case _:
            return False


def _same_answer(one: Answer, other: Answer) -> bool:
    if verify(reference_text(one), other).correct or verify(reference_text(other), one).correct:
        return True  # one of them is rounded more
    if isinstance(one, Number | Integer) and isinstance(other, Number | Integer):
        small, large = sorted((float(one.value), float(other.value)), key=abs)
        return small != 0 and math.isclose(100 * small, large, rel_tol=2e-3)  # a share, and the same in per cent
    return False


def keys(answer: Answer) -> Iterator[tuple[object, ...]]:
    """Equal answers have one of these in common, so that only few pairs need be compared."""
    match answer:
        case Number(value=value) | Integer(value=value):
            if not value:
                yield ("number", 0)
                return
            # In base 100, for shares and per cents; two grids, for values beside a line of one of them.
            mantissa = abs(value) / 100.0 ** math.floor(math.log(abs(value), 100))
            for grid in (0, 1):
                yield ("number", grid, math.floor(math.log(mantissa) * 20 + grid / 2) % 92)
        case Text(value=value, aliases=aliases):
            for name in (value, *aliases):
                yield ("text", fold(name))
        case ListOf(items=items):
            yield ("list", len(items))
        case _:
            yield (type(answer).__name__, reference_text(answer)[:4])


def duplicates(questions: list[Question]) -> Iterator[tuple[int, int]]:
    """The pairs that mean the same, each once or twice."""
    buckets: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        for key in keys(question.answer):
            for before in buckets[key]:
                if mean_the_same(questions[before], question):
                    yield before, number
            buckets[key].append(number)
