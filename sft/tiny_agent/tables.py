"""Data sets by chance: CSV files whose columns, names and values nobody has seen before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd

from jupyter_env.tasksets.tables import Table
from sft.tiny_agent.words import STYLES, column_name, distinct, path, phrase, stems, value, word


@dataclass
class _Sheet:
    """A table in the making: its columns in order, and what is known about them."""

    rng: Random
    draw: np.random.Generator
    rows: int
    stems: tuple[str, ...]
    style: str | None
    taken: set[str] = field(default_factory=set)
    columns: dict[str, Any] = field(default_factory=dict)

    def name(self) -> str:
        return distinct(self.rng, lambda rng: column_name(rng, self.stems, self.style), 1, self.taken)[0]

    def texts(self, count: int) -> list[str]:
        """Values of one column."""
        shared = stems(self.rng)
        return distinct(self.rng, lambda rng: value(rng, shared), count)

    def measures(self, count: int) -> list[str]:
        """Add so many columns of numbers, perhaps with gaps."""
        gappy = self.rng.random() < 0.4
        names = []
        for _ in range(count):
            values = _numbers(self.rng, self.draw, self.rows)
            if gappy and self.rng.random() < 0.5:
                values = pd.Series(values, dtype=float)
                values[self.draw.random(self.rows) < self.rng.choice((0.02, 0.08, 0.2))] = np.nan
            names.append(self.name())
            self.columns[names[-1]] = values
        return names

    def category(self) -> str:
        """Add a column of few texts, some more common than others, perhaps with gaps."""
        options = self.texts(self.rng.choice((2, 2, 3, 3, 4, 5, 6, 8, 12, 20)))
        weights = self.draw.dirichlet(np.full(len(options), 2.0))
        chosen = pd.Series(self.draw.choice(np.array(options, dtype=object), self.rows, p=weights))
        if self.rng.random() < 0.12:
            chosen[self.draw.random(self.rows) < 0.06] = None
        name = self.name()
        self.columns[name] = chosen
        return name

    def code(self) -> str:
        """Add a column of whole numbers that stand for groups."""
        options = sorted(self.rng.sample(range(self.rng.choice((3, 8, 12))), self.rng.choice((2, 3))))
        name = self.name()
        self.columns[name] = self.draw.choice(options, self.rows)
        return name


def _numbers(rng: Random, draw: np.random.Generator, rows: int) -> Any:
    """One column of numbers: whole or broken, of any size, even or skewed."""
    size = 10.0 ** rng.uniform(-2, 6)
    shape = rng.random()
    if shape < 0.4:
        values = draw.normal(size * rng.choice((0, 1, 3, 10)), size, rows)
    elif shape < 0.7:
        values = draw.lognormal(0, rng.choice((0.3, 0.7, 1.2)), rows) * size
    else:
        values = draw.uniform(0, size, rows) + rng.choice((0, 0, size))
    if size > 30 and rng.random() < 0.5:
        return np.round(values).astype(np.int64)
    return np.round(values, rng.choice((1, 2, 2, 3, 4)) + (2 if size < 1 else 0))


def _dates(rng: Random, count: int) -> pd.Series:
    """So many dates in order, one distance apart."""
    step = rng.choice(("D", "D", "D", "W", "MS", "h", "6h"))
    start = f"{rng.randint(1850, 2024)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    dates = pd.Series(pd.date_range(start, periods=count, freq=step))
    return dates.dt.strftime("%Y-%m-%d %H:%M" if step.endswith("h") else "%Y-%m-%d")


def _years(rng: Random, count: int) -> range:
    first = rng.randint(1700, 2020 - count)
    return range(first, first + count)


def _year_name(rng: Random) -> str:
    return rng.choice(("year", "Year", "YEAR", "year", f"{word(rng)}_year", f"{word(rng).capitalize()} Year"))


def _date_name(rng: Random) -> str:
    known = ("date", "Date", "DATE", "day", "time", "timestamp", "year", "Year", "month", "Month", "week", "hour")
    return rng.choice((*known, "date", f"{word(rng)}_date", column_name(rng), column_name(rng)))


def _sheet(rng: Random, rows: int) -> _Sheet:
    style = rng.choice(STYLES) if rng.random() < 0.7 else None
    return _Sheet(rng, np.random.default_rng(rng.getrandbits(64)), rows, stems(rng), style)


def _cross_section(rng: Random) -> _Sheet:
    """Single things with their properties."""
    sheet = _sheet(rng, rng.choice((40, 80, 120, 200, 300, 400)))
    if rng.random() < 0.25:
        sheet.columns[sheet.name()] = sheet.texts(sheet.rows)
    for _ in range(rng.randint(1, 4)):
        sheet.category()
    for _ in range(rng.choice((0, 0, 1, 2))):
        sheet.code()
    if rng.random() < 0.2:
        sheet.columns[_year_name(rng)] = sheet.draw.choice(list(_years(rng, rng.randint(3, 15))), sheet.rows)
    if rng.random() < 0.15:
        dates = _dates(rng, rng.randint(20, 300))
        sheet.columns[_date_name(rng)] = sheet.draw.choice(dates.to_numpy(dtype=object), sheet.rows)
    sheet.measures(rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 6, 8, 12, 20)))
    return sheet


def _panel(rng: Random) -> _Sheet:
    """The same things year after year, or date after date."""
    shared = stems(rng)
    things = distinct(rng, lambda rng: value(rng, shared), rng.randint(3, 24))
    times = list(_years(rng, rng.randint(6, 24))) if rng.random() < 0.75 else _dates(rng, rng.randint(12, 40)).tolist()
    sheet = _sheet(rng, len(things) * len(times))
    kinds = distinct(rng, value, 4)
    kind_of = {thing: rng.choice(kinds) for thing in things}
    key, time = sheet.name(), (_year_name if isinstance(times[0], int) else _date_name)(rng)
    pairs = [(thing, moment) for thing in things for moment in times]
    sheet.columns[key] = [thing for thing, _ in pairs]
    if rng.random() < 0.6:
        sheet.columns[sheet.name()] = [kind_of[thing] for thing, _ in pairs]
    sheet.columns[time] = [moment for _, moment in pairs]
    sheet.measures(rng.randint(1, 6))
    return sheet


def _series(rng: Random) -> _Sheet:
    """One row a date or a year."""
    if rng.random() < 0.3:
        years = _years(rng, rng.randint(30, 120))
        sheet = _sheet(rng, len(years))
        sheet.columns[_year_name(rng)] = list(years)
    else:
        sheet = _sheet(rng, rng.choice((60, 150, 300, 400, 500)))
        sheet.columns[_date_name(rng)] = _dates(rng, sheet.rows).tolist()
    if rng.random() < 0.5:
        sheet.category()
    sheet.measures(rng.choice((1, 2, 3, 4, 6, 12)))
    return sheet


_KINDS: tuple[tuple[Callable[[Random], _Sheet], float], ...] = ((_cross_section, 0.5), (_panel, 0.25), (_series, 0.25))


def data_sets(rng: Random, folder: Path, count: int) -> list[Table]:
    """Write so many data sets below `folder`; returns their tables."""
    tables = [table for _ in range(count) for table in _data_set(rng, folder)]
    return list({table.path: table for table in tables}.values())  # of two of one name, the later was kept


def _data_set(rng: Random, folder: Path) -> list[Table]:
    """One or two tables; two can be joined."""
    kinds, weights = zip(*_KINDS, strict=True)
    sheet = rng.choices(kinds, weights)[0](rng)
    sheets = [sheet]
    if rng.random() < 0.35:
        other = _partner(rng, sheet)
        sheets += [other] if other is not None else []
    paths = distinct(rng, path, 2)
    if rng.random() < 0.6 and "/" in paths[0]:  # two of one folder
        paths[1] = f"{paths[0].rpartition('/')[0]}/{paths[1].rpartition('/')[2]}"
    if paths[0] == paths[1]:
        paths[1] = f"other_{paths[1]}"
    return [_write(each, paths[0], place, folder) for each, place in zip(sheets, paths, strict=False)]


def _partner(rng: Random, sheet: _Sheet) -> _Sheet | None:
    """A second table with one row for each value of a column of the first."""
    keys = [
        name
        for name, values in sheet.columns.items()
        if pd.Series(values).dtype.kind in "OUT" or name.casefold().endswith("year")
    ]
    keys = [name for name in keys if pd.Series(sheet.columns[name]).notna().all()]
    wanted = [name for name in keys if pd.Series(sheet.columns[name]).nunique() >= 12]
    if not wanted:
        return None
    key = rng.choice(wanted)
    values = sorted(set(sheet.columns[key]))
    kept = values if rng.random() < 0.5 else sorted(rng.sample(values, max(12, len(values) * 3 // 4)))
    other = _sheet(rng, len(kept))
    other.taken.update(name.casefold() for name in sheet.columns)
    other.columns[key if rng.random() < 0.8 else key.swapcase()] = kept
    if rng.random() < 0.5:
        other.category()
    other.measures(rng.randint(1, 4))
    if rng.random() < 0.35:  # of one name in both tables, as two cities' temperatures are
        numbers = [
            name for name, values in sheet.columns.items() if pd.Series(values).dtype.kind in "if" and name != key
        ]
        last = list(other.columns)[-1]
        other.columns[rng.choice(numbers or [last])] = other.columns.pop(last)
    return other


def _write(sheet: _Sheet, dataset: str, place: str, folder: Path) -> Table:
    """The CSV file, its columns in any order, and what a person would know about them."""
    rng = sheet.rng
    names = list(sheet.columns)
    if rng.random() < 0.5:
        rng.shuffle(names)
    frame = pd.DataFrame({name: sheet.columns[name] for name in names})
    target = folder / place
    target.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(target, index=False)
    numbers = [name for name in names if frame[name].dtype.kind in "if"]
    noun = word(rng) if rng.random() < 0.7 else f"{word(rng)} and {word(rng)}"
    known = rng.random()
    nouns = ("rows", f"{noun}s", f"{word(rng)}s")[0 if known < 0.3 else 1 if known < 0.9 else 2]
    codes = tuple(name for name in numbers if frame[name].dtype.kind == "i" and frame[name].nunique() <= 3)
    labelled = [name for name in names if rng.random() < 0.3]
    similar = [name for name in numbers if name not in codes]
    return Table(
        path=place,
        dataset=dataset,
        licence="CC0-1.0",
        source="made by chance",
        noun="row" if nouns == "rows" and rng.random() < 0.6 else noun,
        nouns=nouns,
        labels={name: phrase(rng) for name in labelled} if rng.random() < 0.6 else {},
        categories=codes,
        totals=None if rng.random() < 0.4 else tuple(name for name in numbers if rng.random() < 0.7),
        wide=tuple(similar[: rng.randint(3, 8)]) if len(similar) >= 3 and rng.random() < 0.5 else (),
    )
