"""What an answer is, and the strict verifier that turns one into a reward.

An expected answer is typed data (`Number`, `Text`, `ListOf`, ...), stored with its task. `verify` reads a
candidate's text as exactly one value of that type and compares. It is the only grader whose verdict may
become a reward; `jupyter_env.dabstep_compat` reports scores comparable with published ones and rewards
nothing.

Strict means: the whole text is the answer. "12 or 13", a sentence around the number, a list of guesses,
half of a name: each scores 0. Notation is forgiven (case, spaces, quotes, thousands separators), content
is not.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from functools import cache
from typing import Any

import msgspec

from jupyter_env import literals
from jupyter_env.literals import NotThisType

VERIFIER_VERSION = 1
"""Stored with every verdict, and raised whenever a change here or in `literals` could change one."""

MAX_ANSWER_CHARS = 10_000
"""A longer candidate is refused unread: no sound answer is that long, and a dump of candidates may be."""


class Number(msgspec.Struct, frozen=True, kw_only=True, tag="number", tag_field="type", forbid_unknown_fields=True):
    """A real number, equal within half a unit of the last stated decimal, or within a relative tolerance."""

    value: float
    """The expected value, rounded or not."""
    decimals: int | None = None
    """Decimals asked for. The tolerance is then 0.5 x 10^-decimals, so every correct rounding passes."""
    rel_tol: float | None = None
    """Tolerance as a share of the expected value. With neither this nor `decimals`: 1e-9."""
    unit: str | None = None
    """A unit the candidate may write, such as "EUR", "%" or "kg". With "%", the value counts per cents."""

    def __post_init__(self) -> None:
        if self.decimals is not None and self.rel_tol is not None:
            raise ValueError("a number has `decimals` or `rel_tol`, not both")
        if self.decimals is not None and not 0 <= self.decimals <= 15:
            raise ValueError(f"`decimals` is from 0 to 15, got {self.decimals}")
        if self.rel_tol is not None and not 0 <= self.rel_tol < 1:
            raise ValueError(f"`rel_tol` is from 0 to below 1, got {self.rel_tol}")
        if not math.isfinite(self.value):
            raise ValueError(f"`value` is a finite number, got {self.value}")
        _check_unit(self.unit)
        _check_writable(self)


class Integer(msgspec.Struct, frozen=True, kw_only=True, tag="integer", tag_field="type", forbid_unknown_fields=True):
    """A whole number, exactly."""

    value: int
    unit: str | None = None
    """A unit that the candidate may write after or before the number."""

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        _check_writable(self)


class Boolean(msgspec.Struct, frozen=True, kw_only=True, tag="boolean", tag_field="type", forbid_unknown_fields=True):
    """Yes or no (true and false are read alike)."""

    value: bool


class Choice(msgspec.Struct, frozen=True, kw_only=True, tag="choice", tag_field="type", forbid_unknown_fields=True):
    """One of the named options, written in full."""

    value: str
    options: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.value not in self.options:
            raise ValueError(f"`value` {self.value!r} is not among the options {list(self.options)}")
        folded = {literals.fold(option) for option in self.options}
        if "" in folded or len(folded) < len(self.options):
            raise ValueError(f"the options differ by more than notation and none is empty, got {list(self.options)}")
        _check_writable(self)


class Text(msgspec.Struct, frozen=True, kw_only=True, tag="text", tag_field="type", forbid_unknown_fields=True):
    """A name or short phrase, the whole of it; case, spaces, quotes and a closing full stop do not matter."""

    value: str
    aliases: tuple[str, ...] = ()
    """Other spellings that are right too."""

    def __post_init__(self) -> None:
        if not all(literals.fold(text) for text in (self.value, *self.aliases)):
            raise ValueError("`value` and each alias are texts with at least one character")
        _check_writable(self)


class Date(msgspec.Struct, frozen=True, kw_only=True, tag="date", tag_field="type", forbid_unknown_fields=True):
    """A moment as precise as `value` is written: 2023, 2023-01, 2023-01-05, 2023-01-05T14:30, or 14:30."""

    value: str

    def __post_init__(self) -> None:
        try:
            literals.read_moment(self.value)
        except NotThisType as error:
            raise ValueError(f"`value` is an ISO 8601 date or time, got {self.value!r}") from error


class Labelled(msgspec.Struct, frozen=True, kw_only=True, tag="labelled", tag_field="type", forbid_unknown_fields=True):
    """A label with a number, written `label:number` (DABstep's `E:346.49`)."""

    label: str
    number: Number

    def __post_init__(self) -> None:
        if not literals.fold(self.label):
            raise ValueError("`label` is a text with at least one character")
        _check_writable(self)


class ListOf(msgspec.Struct, frozen=True, kw_only=True, tag="list", tag_field="type", forbid_unknown_fields=True):
    """Several answers separated by commas or semicolons, or a JSON list."""

    items: tuple[Answer, ...]
    ordered: bool = True
    """False compares as multisets: any order, the same items as many times."""

    def __post_init__(self) -> None:
        _check_writable(self)


class Named(msgspec.Struct, frozen=True, kw_only=True, tag="named", tag_field="type", forbid_unknown_fields=True):
    """Named values, each written `@name[value]` (DABench's form); all are needed, and no others."""

    values: dict[str, Answer]
    unchecked: tuple[str, ...] = ()
    """Names that the question asks for as well but that nobody has a value for: they may come, with any value."""

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("`values` holds at least one named value")
        _check_writable(self)


class NotApplicable(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag="not_applicable",
    tag_field="type",
    forbid_unknown_fields=True,
):
    """The question has no answer on this data, and saying so is the answer."""


class Hidden(msgspec.Struct, frozen=True, kw_only=True, tag="hidden", tag_field="type", forbid_unknown_fields=True):
    """An answer that only the benchmark's owner has: an episode ends without a verdict, and no text is right."""


Answer = Number | Integer | Boolean | Choice | Text | Date | Labelled | ListOf | Named | NotApplicable | Hidden


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the verifier decided, and why."""

    correct: bool
    reason: str
    """For people: what was expected and what came. It holds the expected answer: only for after the end."""
    verifier: str
    """The type of answer that judged, such as "number"."""
    version: int = VERIFIER_VERSION

    @property
    def score(self) -> float:
        """1.0 if correct, else 0.0."""
        return 1.0 if self.correct else 0.0


def verify(candidate: object, expected: Answer) -> Verdict:
    """Judge one candidate answer.

    Args:
        candidate: what the agent answered; anything but text of at most `MAX_ANSWER_CHARS` is wrong.
        expected: the typed answer of the task.

    Returns:
        A verdict. A candidate that cannot be read is wrong with the reason; no input raises.
    """
    kind = type(expected).__struct_config__.tag
    assert isinstance(kind, str)

    def verdict(correct: bool, reason: str) -> Verdict:
        return Verdict(correct=correct, reason=reason, verifier=kind)

    if not isinstance(candidate, str):
        return verdict(False, f"expected text, got {type(candidate).__name__}")
    if len(candidate) > MAX_ANSWER_CHARS:
        return verdict(False, f"an answer has at most {MAX_ANSWER_CHARS} characters, got {len(candidate)}")
    try:
        correct = _matches(candidate, expected)
    except NotThisType as error:
        return verdict(False, f"expected {describe(expected)}, got {literals.shown(candidate)}: {error}")
    if correct:
        return verdict(True, f"expected {describe(expected)}, got {literals.shown(candidate)}")
    return verdict(False, f"expected {describe(expected)}, got {literals.shown(candidate)}")


def describe(expected: Answer) -> str:
    """The expected answer in words, as verdicts give it: `12.50 within 0.005`."""
    match expected:
        case Number():
            return _describe_number(expected)
        case Integer(value=value, unit=unit):
            return f"{value}{_unit_suffix(unit)}"
        case Boolean(value=value):
            return "yes" if value else "no"
        case Choice(value=value, options=options):
            return f"{value!r} out of {list(options)}"
        case Text(value=value, aliases=aliases):
            return " or ".join(repr(text) for text in (value, *aliases))
        case Date(value=value):
            return value
        case Labelled(label=label, number=number):
            return f"{label}:{_describe_number(number)}"
        case ListOf(items=items, ordered=ordered):
            order = "in this order" if ordered else "in any order"
            return f"[{', '.join(describe(item) for item in items)}] {order}"
        case Named(values=values):
            return ", ".join(f"@{name}[{describe(value)}]" for name, value in values.items())
        case NotApplicable():
            return "'Not Applicable'"
        case Hidden():
            return "an answer that is not known here"


def reference_text(expected: Answer) -> str:
    """The expected answer as an agent would write it: a text that `verify` accepts."""
    match expected:
        case Number(value=value, decimals=decimals):
            return f"{literals.exact(value):.{decimals}f}" if decimals is not None else repr(float(value))
        case Integer(value=value):
            return str(value)
        case Boolean(value=value):
            return "yes" if value else "no"
        case Choice(value=value) | Text(value=value) | Date(value=value):
            return value
        case Labelled(label=label, number=number):
            return f"{label}:{reference_text(number)}"
        case ListOf(items=items):
            texts = [reference_text(item) for item in items]
            plain = ", ".join(texts)
            reads_back = bool(texts and plain) and literals.split_list(plain, len(texts)) == texts
            return plain if reads_back else json.dumps(texts, ensure_ascii=False)
        case Named(values=values):
            return ", ".join(f"@{name}[{reference_text(value)}]" for name, value in values.items())
        case NotApplicable():
            return "Not Applicable"
        case Hidden():
            return ""


def _matches(candidate: str, expected: Answer) -> bool:
    """Whether the text is the expected answer.

    Raises:
        NotThisType: the text is not one value of the expected type; the message says why.
    """
    match expected:
        case Number():
            return _number_matches(candidate, expected)
        case Integer(value=value, unit=unit):
            return literals.read_number(candidate, unit=unit) == value
        case Boolean(value=value):
            return literals.read_boolean(candidate) == value
        case Choice(value=value, options=options):
            return _read_option(candidate, options) == value
        case Text(value=value, aliases=aliases):
            return literals.fold(candidate) in {literals.fold(text) for text in (value, *aliases)}
        case Date(value=value):
            return literals.is_moment(candidate, value)
        case Labelled(label=label, number=number):
            got_label, got_number = literals.split_label(candidate)
            return literals.fold(got_label) == literals.fold(label) and _number_matches(got_number, number)
        case ListOf(items=items, ordered=ordered):
            return _list_matches(literals.split_list(candidate, len(items)), items, ordered)
        case Named(values=values, unchecked=unchecked):
            return _named_matches(literals.read_named(candidate), values, unchecked)
        case NotApplicable():
            return literals.fold(candidate) in {"not applicable", "n/a"}
        case Hidden():
            return False


def _number_matches(candidate: str, expected: Number) -> bool:
    got = literals.read_number(candidate, unit=expected.unit)
    return abs(got - literals.exact(expected.value)) <= _tolerance(expected)


def _tolerance(expected: Number) -> Decimal:
    value = abs(literals.exact(expected.value))
    # The slack keeps a true half, such as 0.125 rounded to 0.12 or 0.13, on the right side of float noise.
    slack = Decimal("1e-9") * max(value, Decimal("1e-6"))
    if expected.decimals is not None:
        return Decimal(5).scaleb(-expected.decimals - 1) + min(slack, Decimal(1).scaleb(-expected.decimals - 3))
    if expected.rel_tol is not None:
        return literals.exact(expected.rel_tol) * value + Decimal("1e-12") * value
    return Decimal("1e-9") * value


def _read_option(candidate: str, options: tuple[str, ...]) -> str:
    for option in options:
        if literals.fold(candidate) == literals.fold(option):
            return option
    raise NotThisType(f"not one of the options {list(options)}")


def _list_matches(texts: list[str], items: tuple[Answer, ...], ordered: bool) -> bool:
    if len(texts) != len(items):
        raise NotThisType(f"{len(texts)} items where {len(items)} were expected")
    in_order = all(_item_matches(text, item) for text, item in zip(texts, items, strict=True))
    return in_order or (not ordered and _can_pair(texts, items))


def _can_pair(texts: list[str], items: tuple[Answer, ...]) -> bool:
    """Whether every text gets an item of its own (augmenting paths, for two items may accept one text)."""

    @cache
    def fitting(text: str) -> list[int]:
        return [i for i, item in enumerate(items) if _item_matches(text, item)]

    owner: dict[int, int] = {}  # item -> the text that holds it
    held: dict[int, int] = {}  # and back

    def place(newcomer: int) -> bool:
        asked_by: dict[int, int] = {}  # item -> the text that would take it
        asking = [newcomer]
        for text in asking:  # grows while it is walked: breadth first, so a long chain is no deep recursion
            for item in fitting(texts[text]):
                if item in asked_by:
                    continue
                asked_by[item] = text
                if item in owner:
                    asking.append(owner[item])
                    continue
                taken: int | None = item
                while taken is not None:  # each text on the way takes what it asked for and leaves its own
                    taker = asked_by[taken]
                    left = held.get(taker)
                    owner[taken], held[taker], taken = taker, taken, left
                return True
        return False

    return all(place(text) for text in range(len(texts)))


def _item_matches(text: str, item: Answer) -> bool:
    try:
        return _matches(text, item)
    except NotThisType:
        return False


def _named_matches(got: dict[str, str], expected: dict[str, Answer], unchecked: tuple[str, ...]) -> bool:
    if not set(expected) <= set(got) <= {*expected, *unchecked}:
        raise NotThisType(f"names {sorted(got)} where {sorted(expected)} were expected")
    return all(_item_matches(got[name], answer) for name, answer in expected.items())


def _describe_number(expected: Number) -> str:
    if expected.decimals is not None:
        within = f"within {Decimal(5).scaleb(-expected.decimals - 1)}"
        return f"{expected.value:.{expected.decimals}f}{_unit_suffix(expected.unit)} {within}"
    if expected.rel_tol:
        return f"{expected.value:.12g}{_unit_suffix(expected.unit)} within {100 * expected.rel_tol:.4g}%"
    return f"{expected.value:.12g}{_unit_suffix(expected.unit)}"


def _unit_suffix(unit: str | None) -> str:
    return "" if unit is None else unit if unit == "%" else f" {unit}"


def _check_unit(unit: str | None) -> None:
    if unit is not None and not literals.is_unit(unit):
        raise ValueError(f"`unit` is a sign or word, such as '%' or 'kg', got {unit!r}")


def _check_writable(answer: Answer) -> None:
    """Refuse a definition that nobody could meet: its own text, as `reference_text` has it, must be right.

    Raises:
        ValueError: a name that `@name[value]` cannot hold, more than `MAX_ANSWER_CHARS`, ...
    """
    text = reference_text(answer)
    if not verify(text, answer).correct:
        raise ValueError(f"no text can be this answer: {literals.shown(text)} would be read as something else")


def from_data(data: Any) -> Answer:
    """The typed answer out of plain data such as `{"type": "number", "value": 12.5, "decimals": 2}`.

    Raises:
        msgspec.ValidationError: the data is no answer; the message names the field and what was expected.
    """
    answer: Answer = msgspec.convert(data, Answer)
    return answer
