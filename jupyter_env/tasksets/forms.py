"""How answers are written and read: guidelines for the agent, and a reader of what reference code printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jupyter_env.answer import Answer, Choice, Date, Integer, Labelled, ListOf, Named, Number, Text
from jupyter_env.tasksets.schema import Schema


@dataclass(frozen=True)
class Form:
    """How an answer is written, and how the printed text becomes a typed answer."""

    guidelines: str
    read: Callable[[str], Answer]
    """Raises ValueError on a text that is no such answer."""


def number(decimals: int, unit: str | None = None) -> Form:
    """A number rounded to so many decimals."""
    what = "a percentage (such as 12.3 for 12.3%)" if unit == "%" else "a number"
    return Form(
        f"Give {what} rounded to {decimals} decimals, without other text.",
        lambda text: Number(value=float(text), decimals=decimals, unit=unit),
    )


def integer() -> Form:
    """A count."""
    return Form("Give a whole number, without other text.", lambda text: Integer(value=int(text)))


def name_of(schema: Schema, column: str) -> Form:
    """One value of a column: out of the known ones where they are few."""
    options = tuple(str(value) for value in schema.values(column))
    if 2 < len(options) <= 12:
        return one_of(options, f"Give one value of `{column}`, written as in the table, and nothing else.")
    return Form(
        f"Give one value of `{column}`, written as in the table, and nothing else.",
        lambda text: Text(value=text),
    )


def one_of(options: Sequence[str], guidelines: str) -> Form:
    """One of the options."""
    return Form(guidelines, lambda text: Choice(value=text, options=tuple(options)))


def date(precision: Literal["year", "month", "day", "minute"]) -> Form:
    """A date as precise as stated."""
    length = {"year": 4, "month": 7, "day": 10, "minute": 16}[precision]
    return Form(f"Answer in the form {'YYYY-MM-DDTHH:MM'[:length]}.", lambda text: Date(value=text))


def separator(names: Sequence[str]) -> str:
    """What stands between the items of a list of such names."""
    return "; " if any("," in name for name in names) else ", "


def list_of_names(schema: Schema, column: str, ordered: bool) -> Form:
    """Values of a column."""
    mark = separator([str(value) for value in schema.values(column)])
    return list_of_texts(mark, ordered, "The names are written as in the table.")


def list_of_texts(mark: str, ordered: bool, note: str = "") -> Form:
    """Texts between commas or semicolons."""
    kind = "semicolon" if mark == "; " else "comma"
    order = "in the order asked for" if ordered else "in any order"
    return Form(
        f"Answer as a {kind}-separated list, {order}. {note}".strip(),
        lambda text: ListOf(items=tuple(Text(value=item) for item in text.split(mark)), ordered=ordered),
    )


def labelled(decimals: int, unit: str | None = None) -> Form:
    """A name with its number."""

    def read(text: str) -> Answer:
        label, _, value = text.rpartition(":")
        return Labelled(label=label, number=Number(value=float(value), decimals=decimals, unit=unit))

    of = "a percentage" if unit == "%" else "the number"
    return Form(f"Answer as name:number, with {of} rounded to {decimals} decimals.", read)


def named(decimals: dict[str, int]) -> Form:
    """Several named numbers; 0 decimals for a count."""

    def read(text: str) -> Answer:
        values = dict(pair[1:-1].split("[") for pair in text.split(", "))
        return Named(values={name: _number(values[name], places) for name, places in decimals.items()})

    form = ", ".join(f"@{name}[value]" for name in decimals)
    rounding = ", ".join(
        f"{name} to {places} decimals" if places else f"{name} a whole number" for name, places in decimals.items()
    )
    return Form(f"Answer as {form}, rounded: {rounding}.", read)


def _number(text: str, places: int) -> Answer:
    return Number(value=float(text), decimals=places) if places else Integer(value=int(text))


def written_label(schema: Schema, label: str, cell: str) -> tuple[Form, str]:
    """How a name, date or year is answered, and the expression that writes the one in `cell`."""
    if label in schema.dates:
        values = schema.frame[label]
        daily = bool((values.dt.normalize() == values).all())
        pattern = "%Y-%m-%d" if daily else "%Y-%m-%dT%H:%M"
        return date("day" if daily else "minute"), f"{cell}.strftime({pattern!r})"
    if label in schema.years:
        return date("year"), cell
    return name_of(schema, label), cell
