"""What the columns of a table are good for: measures, categories, names, dates and years."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from jupyter_env.literals import fold
from jupyter_env.task import TaskError
from jupyter_env.tasksets.tables import Table, pandas_library

MAX_CATEGORIES = 30
"""A text column with more distinct values holds names."""
MAX_CODES = 12
"""A column of whole numbers with more distinct values is a measure, not a code."""
MIN_ROWS = 12
"""Below this a question about a table can be answered by reading it."""
MIN_SHARED_KEYS = 8

_PLAIN = re.compile(r"[^`'\"\n\r\\;:\[\]{}|][^`\"\n\r\\;:\[\]{}|]{0,79}")
_ISO_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2})?)?")


@dataclass(frozen=True)
class Clock:
    """A column that orders rows in time, once each: in the whole table or within each value of `within`."""

    column: str
    within: str | None = None


@dataclass(frozen=True)
class Join:
    """A second table in which each value of `key_there` stands once, and that shares values with "
    "`key_here`."""

    other: Schema
    key_here: str
    key_there: str


@dataclass(frozen=True, eq=False)
class Schema:
    """A table, its frame, and the roles of its columns."""

    table: Table
    frame: Any
    """The pandas frame as read, with the date columns parsed."""
    measures: tuple[str, ...]
    """Numbers to average and compare."""
    categories: tuple[str, ...]
    """Text or codes with 2 to `MAX_CATEGORIES` distinct values."""
    names: tuple[str, ...]
    """Text with more distinct values than that."""
    dates: tuple[str, ...]
    years: tuple[str, ...]
    joins: tuple[Join, ...] = field(default=())
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    """What was computed of the frame, which thousands of drafts ask for again."""

    def _once(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    @property
    def groups(self) -> tuple[str, ...]:
        """Columns to group rows by: categories, and names that come at least twice on average."""

        def compute() -> tuple[str, ...]:
            repeated = (name for name in self.names if self.frame[name].nunique() * 2 <= len(self.frame))
            return self.categories + tuple(repeated)

        return cast(tuple[str, ...], self._once("groups", compute))

    @property
    def totals(self) -> tuple[str, ...]:
        """Measures without negative values whose sum means something."""

        def compute() -> tuple[str, ...]:
            listed = self.table.totals
            whole = [m for m in self.measures if self.frame[m].dtype.kind == "i"] if listed is None else listed
            return tuple(m for m in self.measures if m in whole and self.frame[m].min() >= 0)

        return cast(tuple[str, ...], self._once("totals", compute))

    @property
    def wide(self) -> tuple[str, ...]:
        """Measures that may be melted into one column."""
        return tuple(column for column in self.table.wide if column in self.measures)

    def values(self, column: str) -> list[Any]:
        """The distinct values as Python objects, sorted."""
        known = self._once(f"values {column}", lambda: sorted(self.frame[column].dropna().unique().tolist()))
        return list(known)

    def has_missing(self, column: str) -> bool:
        """Whether any row lacks a value."""
        return bool(self._once(f"missing {column}", lambda: self.frame[column].isna().any()))

    def mode(self, column: str) -> str | None:
        """The most common value as text; None if several are."""
        modes = self.frame[column].mode()
        return str(modes.iloc[0]) if len(modes) == 1 else None

    def decimals(self, column: str) -> int:
        """Decimals that show a statistic of the measure to about three digits of its spread, at least 2."""
        return int(self._once(f"decimals {column}", lambda: decimals_for(float(self.frame[column].std()))))

    def say(self, column: str) -> str:
        """The column in a question: in backticks, after its name in words if one is known."""
        label = self.table.labels.get(column)
        return f"{label} (`{column}`)" if label else f"`{column}`"

    def clocks(self) -> list[Clock]:
        """The ways to read the table as one or several series in time."""
        return list(self._once("clocks", self._find_clocks))

    def _find_clocks(self) -> list[Clock]:
        found = []
        for column in self.dates + self.years:
            if self.frame[column].is_unique:
                found.append(Clock(column))
                continue
            for key in self.groups:
                sizes = self.frame.groupby([key, column]).size()
                if sizes.max() == 1 and len(sizes) >= 8 * self.frame[key].nunique():
                    found.append(Clock(column, within=key))
        return found


def decimals_for(spread: float) -> int:
    """Decimals that show about three digits of figures of this size, at least 2."""
    return 2 if not spread > 0 or spread >= 1 else min(8, 2 + math.ceil(-math.log10(spread)))


def read_schemas(tables: list[Table], data_root: Path) -> list[Schema]:
    """The schemas of all tables that can carry questions, with the joins between them.

    Raises:
        TaskError: a table is missing or pandas cannot parse it.
    """
    schemas = [infer(table, data_root / table.path) for table in tables]
    schemas = [schema for schema in schemas if len(schema.frame) >= MIN_ROWS and schema.measures]
    return [replace(schema, joins=_joins(schema, schemas)) for schema in schemas]


def infer(table: Table, path: Path) -> Schema:
    """Read a table and find the role of each column."""
    pandas = pandas_library()
    try:
        frame = pandas.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise TaskError(f"{path} cannot be read as a CSV table: {error}") from error
    roles: dict[str, list[str]] = {role: [] for role in ("measure", "category", "name", "date", "year")}
    for column in frame.columns:
        role = _role(table, str(column), frame[column])
        if role is not None:
            roles[role].append(str(column))
    for column in roles["date"]:
        frame[column] = pandas.to_datetime(frame[column])
    return Schema(
        table=table,
        frame=frame,
        measures=tuple(roles["measure"]),
        categories=tuple(roles["category"]),
        names=tuple(roles["name"]),
        dates=tuple(roles["date"]),
        years=tuple(roles["year"]),
    )


def _role(table: Table, column: str, values: Any) -> str | None:
    """The role of a column, or None to leave it alone."""
    known = values.dropna()
    distinct = known.nunique()
    if column in table.ignored or not _is_plain(column) or column.startswith("Unnamed") or distinct < 2:
        return None
    if values.dtype.kind in "if":
        return _role_of_numbers(table, column, known, distinct)
    if values.dtype.kind in "bMmc" or not all(isinstance(value, str) for value in known):
        return None
    texts = known.unique().tolist()
    if len(known) == len(values) and all(_ISO_DATE.fullmatch(text) for text in texts):
        return "date" if _all_are_dates(texts) else None
    if not all(_is_plain(text) for text in texts) or len({fold(text) for text in texts}) < len(texts):
        return None
    if distinct <= MAX_CATEGORIES and len(known) >= 2 * distinct:
        return "category"
    return "name" if distinct > 5 else None


def _role_of_numbers(table: Table, column: str, known: Any, distinct: int) -> str | None:
    if not known.abs().max() < float("inf"):
        return None
    whole = known.dtype.kind == "i"
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column).casefold())
    if whole and column in table.categories and distinct <= MAX_CATEGORIES:
        return "category"
    if whole and words[-1] == "year" and known.between(1000, 2200).all():
        return "year"
    counts_up = whole and len(known) > 2 and bool((known.diff().dropna() == 1).all())
    if counts_up or (whole and {"id", "index", "code", "zip"} & set(words)):
        return None
    if whole and distinct <= MAX_CODES and not table.categories and len(known) >= 10 * distinct:
        return "category"
    return "measure" if distinct >= 8 else None


def _is_plain(text: str) -> bool:
    """Whether it can stand in a question and in a list of answers without changing how they read."""
    return _PLAIN.fullmatch(text) is not None and text == text.strip() and text.isprintable()


def _all_are_dates(texts: list[str]) -> bool:
    pandas = pandas_library()
    return bool(pandas.to_datetime(pandas.Series(texts), errors="coerce").notna().all())


def _joins(schema: Schema, schemas: list[Schema]) -> tuple[Join, ...]:
    """Tables of the same data set with a key of the same name, whatever its case."""
    found = []
    for other in schemas:
        if other.table.path == schema.table.path or _join_group(other.table) != _join_group(schema.table):
            continue
        for here in schema.dates + schema.years + schema.categories + schema.names:
            for there in other.dates + other.years + other.names + other.categories:
                if here.casefold() == there.casefold() and _can_join(schema.frame[here], other.frame[there]):
                    found.append(Join(other, here, there))
    return tuple(found)


def _can_join(here: Any, there: Any) -> bool:
    if here.dtype.kind != there.dtype.kind or not there.is_unique or here.isna().any() or there.isna().any():
        return False
    shared = int(here[here.isin(there)].nunique())
    return shared >= MIN_SHARED_KEYS


def _join_group(table: Table) -> str:
    return table.joins or table.dataset
