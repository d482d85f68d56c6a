"""A question before its code has run, and the parts that families build one from: words, selections, code.

A draft holds no answer: the answer is read, with the draft's `Form`, from what its code prints.
"""

from __future__ import annotations

import calendar
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from jupyter_env.task import Level
from jupyter_env.tasksets.forms import Form
from jupyter_env.tasksets.schema import Schema

T = TypeVar("T")

MIN_SELECTION = 5
"""A statistic of fewer rows than this is a question about single values."""

TOO_FEW = "selection too small or no selection"
"""A reason to reject, for checks."""

TIES = "ambiguous: ties or near ties"
"""A reason to reject, for checks."""


class Unfit(Exception):
    """The table, or this draw from it, does not carry a question of the family."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One question without its answer."""

    question: str
    form: Form
    code: str
    checks: tuple[tuple[str, str], ...] = ()
    """Pairs (reason to reject, expression over the code's variables that must be true)."""
    answered: str | None = None
    """The column that the answer is a value of."""
    others: tuple[str, ...] = ()
    """Paths of further tables that the question needs."""


@dataclass(frozen=True)
class Family:
    """A kind of question: its name, its level, and how to draw one for a table."""

    name: str
    level: Level
    draw: Callable[[Schema, Random], Draft]
    """Raises `Unfit`."""


@dataclass(frozen=True)
class Selection:
    """The rows that a question is about."""

    rows: str
    """Such as "penguins where `species` is "Adelie"", or "penguins" for all of them."""
    lines: tuple[str, ...]
    """Code that sets `frame`; none if that is `df`, the whole table."""
    columns: tuple[str, ...]

    @property
    def frame(self) -> str:
        """The name of the frame of selected rows in the code."""
        return "part" if self.lines else "df"

    @property
    def checks(self) -> tuple[tuple[str, str], ...]:
        """That it selects some rows, and not all."""
        if not self.columns:
            return ()
        return ((TOO_FEW, f"{MIN_SELECTION} <= len(part) < len(df)"),)


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of the options; raises `Unfit` if there is none."""
    if not options:
        raise Unfit
    return rng.choice(options)


def pick_some(rng: Random, options: Sequence[T], k: int) -> list[T]:
    """`k` distinct ones; raises `Unfit` if there are not so many."""
    if len(options) < k:
        raise Unfit
    return rng.sample(list(options), k)


def without(options: Sequence[T], *taken: T | None) -> list[T]:
    """The options that are not taken."""
    return [option for option in options if option not in taken]


def load(schema: Schema, *columns: str | None, name: str = "df") -> list[str]:
    """Lines that read the table into `name`, with those of `columns` that are dates parsed."""
    dates = [column for column in dict.fromkeys(columns) if column in schema.dates]
    parse = f", parse_dates={dates!r}" if dates else ""
    return [f"{name} = pd.read_csv({'data/' + schema.table.path!r}{parse})"]


def script(*blocks: Sequence[str] | str) -> str:
    """Code out of lines and lists of lines, below the import of pandas."""
    lines = ["import pandas as pd", ""]
    for block in blocks:
        lines += [block] if isinstance(block, str) else list(block)
    return "\n".join(lines) + "\n"


def ask(rng: Random, schema: Schema, bodies: Sequence[str], *notes: str, files: str = "") -> str:
    """One of the bodies, which begin in lower case and end in a mark, as a full question with its notes."""
    body, file, noun = rng.choice(list(bodies)), files or f"`data/{schema.table.path}`", schema.table.noun
    capital = body[0].upper() + body[1:]
    leads = [
        f"In {file}, {body}",
        f"Using {file}, {body}",
        f"Load {file}. {capital}",
        f"{capital} The data are in {file}.",
    ]
    if not files:
        leads.append(f"Each row of {file} is one {noun}. {capital}" if noun != "row" else f"Read {file}. {capital}")
    return " ".join([rng.choice(leads), *(note for note in notes if note)])


def missing_notes(schema: Schema, measured: Sequence[str] = (), grouped: Sequence[str] = ()) -> str:
    """What happens to missing values, in words, for those columns that have some."""
    notes = []
    gaps = [f"`{column}`" for column in dict.fromkeys(measured) if schema.has_missing(column)]
    if gaps:
        notes.append(f"Ignore missing values of {' and '.join(gaps)}.")
    gaps = [f"`{column}`" for column in dict.fromkeys(grouped) if schema.has_missing(column)]
    if gaps:
        notes.append(f"Rows with a missing {' or '.join(gaps)} meet no condition on it and belong to no group.")
    return " ".join(notes)


def select(schema: Schema, rng: Random, k: int, *avoid: str | None) -> Selection:
    """Rows that meet `k` conditions on distinct columns, none of them on a column in `avoid`."""
    if k == 0:
        return Selection(schema.table.nouns, (), ())
    usable = [*schema.groups, *schema.years, *schema.dates, *schema.measures]
    columns = [column for column in usable if column not in avoid]
    weights = [0.4 if column in schema.measures or column in schema.names else 2.0 for column in columns]
    chosen: list[str] = []
    while len(chosen) < k:
        left = [(column, weight) for column, weight in zip(columns, weights, strict=True) if column not in chosen]
        if not left:
            raise Unfit
        chosen += rng.choices([column for column, _ in left], [weight for _, weight in left])
    conditions = [condition(schema, rng, column) for column in chosen]
    masks = [mask for _, mask in conditions]
    mask = masks[0] if k == 1 else " & ".join(f"({mask})" for mask in masks)
    rows = f"{schema.table.nouns} where {' and '.join(words for words, _ in conditions)}"
    return Selection(rows, (f"part = df[{mask}]",), tuple(chosen))


def condition(schema: Schema, rng: Random, column: str, frame: str = "df") -> tuple[str, str]:
    """A condition on one column, as words and as a mask over `frame`."""
    cell, name = f"{frame}[{column!r}]", schema.say(column)
    if column in schema.categories or column in schema.names:
        value = pick(rng, schema.values(column))
        return f"{name} is {shown(value)}", f"{cell} == {value!r}"
    if column in schema.dates:
        return _date_condition(schema, rng, column, cell)
    if column in schema.years:
        first, last = sorted(pick_some(rng, schema.values(column), 2))
        return f"{name} is from {first} to {last} (both included)", f"{cell}.between({first}, {last})"
    limit = threshold(schema, column, rng.uniform(0.15, 0.85))
    if rng.random() < 0.5:
        return f"{name} is above {limit}", f"{cell} > {limit}"
    return f"{name} is at most {limit}", f"{cell} <= {limit}"


def _date_condition(schema: Schema, rng: Random, column: str, cell: str) -> tuple[str, str]:
    values, name = schema.frame[column], schema.say(column)
    years = sorted(set(values.dt.year.tolist()))
    months = sorted(set(values.dt.month.tolist()))
    ways = ["year", "from year"] * (len(years) > 1) + ["month", "from month"] * (len(months) > 1)
    way, year, month = pick(rng, ways), rng.choice(years), rng.choice(months)
    if way == "year":
        return f"{name} is in the year {year}", f"{cell}.dt.year == {year}"
    if way == "from year":
        return f"{name} is in the year {year} or later", f"{cell}.dt.year >= {year}"
    if way == "month":
        return f"{name} is in {calendar.month_name[month]} (of any year)", f"{cell}.dt.month == {month}"
    last = pick(rng, [later for later in months if later > month])
    words = f"{calendar.month_name[month]} to {calendar.month_name[last]} (both included, of any year)"
    return f"{name} is in {words}", f"{cell}.dt.month.between({month}, {last})"


def threshold(schema: Schema, column: str, share: float) -> float | int:
    """A round number near the quantile of a measure."""
    values = schema.frame[column]
    quantile, spread = float(values.quantile(share)), float(values.std()) or 1.0
    places = 1 - math.floor(math.log10(spread))
    limit = round(quantile, places)
    return int(limit) if values.dtype.kind == "i" or places <= 0 else limit


def shown(value: Any) -> str:
    """A value in a question: text in double quotes, a code as it is."""
    return f'"{value}"' if isinstance(value, str) else str(value)


STATISTICS: dict[str, tuple[str, ...]] = {
    "mean": ("mean", "average"),
    "median": ("median",),
    "std": ("sample standard deviation",),
    "max": ("maximum",),
    "min": ("minimum",),
    "sum": ("total", "sum"),
}
"""Name of the pandas method, and words for it."""


def pick_statistic(schema: Schema, rng: Random, column: str, methods: Sequence[str]) -> tuple[str, str]:
    """A pandas method that suits the column, and a word for it."""
    # The sum of a group without values is 0 to pandas, and nothing to a reader.
    summable = column in schema.totals and not schema.has_missing(column)
    method = pick(rng, [method for method in methods if method != "sum" or summable])
    return method, rng.choice(STATISTICS[method])
