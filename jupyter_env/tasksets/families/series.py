"""Rows in the order of time: rolling windows, months, seasons, growth."""

from __future__ import annotations

from random import Random

from jupyter_env.tasksets import drafts, forms
from jupyter_env.tasksets.drafts import (
    TIES,
    TOO_FEW,
    Draft,
    Family,
    Selection,
    ask,
    load,
    missing_notes,
    pick,
    pick_some,
    script,
    select,
)
from jupyter_env.tasksets.schema import Schema


def rolling_extreme(schema: Schema, rng: Random) -> Draft:
    """When a rolling statistic is highest or lowest, or its value there."""
    clock, measure = pick(rng, schema.clocks()), pick(rng, schema.measures)
    selection, whose = _one_series(schema, rng, clock.within)
    series_length = len(schema.frame) if clock.within is None else _shortest(schema, clock.within)
    window = pick(rng, [k for k in (3, 4, 5, 6, 7, 8, 10, 12, 14, 21, 24, 30, 48, 90) if 4 * k <= series_length])
    method, word = rng.choice((("mean", "mean"), ("median", "median"), ("std", "sample standard deviation")))
    largest = rng.random() < 0.5
    extreme, call = ("highest", "max") if largest else ("lowest", "min")
    name, places = schema.say(measure), schema.decimals(measure)
    gaps = schema.has_missing(measure)
    form, printed = forms.written_label(schema, clock.column, cell=f"rolling.idx{call}()")
    if rng.random() < 0.5:
        question_end = f"on which `{clock.column}` does the window end in which the rolling {word} is {extreme}?"
        last = f"print({printed})"
    else:
        question_end = f"what is the {extreme} value of the rolling {word}?"
        form, last = forms.number(places), f'print(f"{{rolling.{call}():.{places}f}}")'
    span = f"{window} consecutive rows"
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"sort the rows{whose} by `{clock.column}` and take the rolling {word} of {name} over {span}: "
                f"{question_end}",
                f"consider {name}{whose} in the order of `{clock.column}`, with a rolling {word} over {span}. "
                f"{question_end[0].upper()}{question_end[1:]}",
                f"for {name}{whose}, ordered by `{clock.column}`, compute the {word} of each window of {span}; "
                f"{question_end}",
            ],
            "Only full windows count" + (", and windows with a missing value do not." if gaps else "."),
        ),
        form=form,
        code=script(
            load(schema, clock.column, *selection.columns),
            selection.lines,
            f"series = {selection.frame}.set_index({clock.column!r}).sort_index()[{measure!r}]",
            f"rolling = series.rolling({window}).{method}()",
            last,
        ),
        checks=((TIES, f"clear_ranks(rolling, 1, {largest})"),),
    )


def _one_series(schema: Schema, rng: Random, within: str | None) -> tuple[Selection, str]:
    """The rows of one series in time, and words for whose they are."""
    if within is None:
        return Selection("rows", (), ()), ""
    value = pick(rng, schema.values(within))
    words = f" where `{within}` is {drafts.shown(value)}"
    return Selection(f"rows{words}", (f"part = df[df[{within!r}] == {value!r}]",), (within,)), words


def _shortest(schema: Schema, within: str) -> int:
    return int(schema.frame[within].value_counts().min())


def monthly_change(schema: Schema, rng: Random) -> Draft:
    """The month whose mean rises or falls most against the month before."""
    clock, measure = _fine_clock(schema, rng, rows_per_month=3), pick(rng, schema.measures)
    method, word = drafts.pick_statistic(schema, rng, measure, ("mean", "median", "max", "min", "sum"))
    selection = select(schema, rng, rng.choice((0, 0, 1)), clock, measure)
    rise = rng.random() < 0.5
    move, call = ("rise", "idxmax") if rise else ("fall", "idxmin")
    rows, name = selection.rows, schema.say(measure)
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"take the {word} of {name} in each calendar month of `{clock}` over the {rows}. Which month shows the "
                f"largest {move} against the month before?",
                f"in which month does the monthly {word} of {name} over the {rows} {move} most against the previous "
                f"calendar month (by `{clock}`)?",
                f"by `{clock}`, compute the {word} of {name} for every month, over the {rows}. In which month is the "
                f"{move} from the preceding calendar month largest?",
            ],
            "Compare only with the directly preceding calendar month, and only where both months have values.",
            missing_notes(schema, [measure], selection.columns),
        ),
        form=forms.date("month"),
        code=script(
            load(schema, clock, *selection.columns),
            selection.lines,
            f"months = {selection.frame}[{clock!r}].dt.to_period('M')",
            f"monthly = {selection.frame}.groupby(months)[{measure!r}].{method}()",
            "every = pd.period_range(monthly.index.min(), monthly.index.max(), freq='M')",
            "change = monthly.reindex(every).diff()",
            f"print(change.{call}())",
        ),
        checks=(
            *selection.checks,
            (TOO_FEW, "change.count() >= 6"),
            (TIES, f"clear_ranks(change, 1, {rise})"),
        ),
    )


def _fine_clock(schema: Schema, rng: Random, rows_per_month: int) -> str:
    """A date column with enough rows in a month and at least a year of them."""
    fine = []
    for column in schema.dates:
        months = schema.frame[column].dt.to_period("M").nunique()
        if (
            schema.frame[column].dt.month.nunique() >= 6
            and months >= 12
            and len(schema.frame) >= rows_per_month * months
        ):
            fine.append(column)
    return pick(rng, fine)


def calendar_pattern(schema: Schema, rng: Random) -> Draft:
    """The weekday, month of the year or hour with the highest or lowest statistic."""
    clock, measure = _fine_clock(schema, rng, rows_per_month=1), pick(rng, schema.measures)
    method, word = drafts.pick_statistic(schema, rng, measure, ("mean", "median", "std"))
    stamps = schema.frame[clock]
    ways = ["month"]
    if stamps.dt.day_of_week.nunique() == 7 and stamps.dt.day.nunique() > 27:
        ways.append("weekday")
    if stamps.dt.hour.nunique() == 24:
        ways.append("hour")
    way = rng.choice(ways)
    selection = select(schema, rng, rng.choice((0, 1, 1)), clock, measure)
    largest = rng.random() < 0.5
    extreme, call = ("highest", "idxmax") if largest else ("lowest", "idxmin")
    key, form, unit = {
        "month": (
            "dt.month_name()",
            forms.one_of(_MONTHS, "Give the English name of the month."),
            "month of the year",
        ),
        "weekday": (
            "dt.day_name()",
            forms.one_of(_DAYS, "Give the English name of the weekday."),
            "weekday",
        ),
        "hour": ("dt.hour", forms.integer(), "hour of the day (0 to 23)"),
    }[way]
    rows, name = selection.rows, schema.say(measure)
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"which {unit}, by `{clock}`, has the {extreme} {word} of {name} over the {rows}?",
                f"group the {rows} by the {unit} of `{clock}`. For which one is the {word} of {name} {extreme}?",
                f"over the {rows}, on which {unit} of `{clock}` is the {word} of {name} {extreme}?",
            ],
            missing_notes(schema, [measure], selection.columns),
        ),
        form=form,
        code=script(
            load(schema, clock, *selection.columns),
            selection.lines,
            f"values = {selection.frame}.groupby({selection.frame}[{clock!r}].{key})[{measure!r}].{method}()",
            f"print(values.{call}())",
        ),
        checks=(*selection.checks, (TIES, f"clear_ranks(values, 1, {largest})")),
    )


_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def seasonal_anomaly(schema: Schema, rng: Random) -> Draft:
    """The date that departs most from what is normal for its calendar month."""
    clocks = [clock.column for clock in schema.clocks() if clock.within is None and clock.column in schema.dates]
    fine = [column for column in clocks if schema.frame[column].dt.month.nunique() == 12]
    clock, measure = pick(rng, fine), pick(rng, schema.measures)
    selection = select(schema, rng, rng.choice((0, 1, 1)), measure)
    part, rows, name = selection.frame, selection.rows, schema.say(measure)
    typical = rng.choice(("mean", "median"))
    sign, call, largest = rng.choice((("above", "idxmax", True), ("below", "idxmin", False)))
    form, printed = forms.written_label(schema, clock, cell=f"{part}.loc[anomaly.{call}(), {clock!r}]")
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"take the {typical} of {name} for each calendar month (January to December, all years of the table "
                f"together). On which `{clock}` among the {rows} is {name} furthest {sign} the {typical} of its month?",
                f"subtract from {name} the {typical} of the same month of the year, computed over the whole table. "
                f"Which `{clock}` among the {rows} has the value furthest {sign} that {typical}?",
                f"on which `{clock}`, among the {rows}, does {name} lie furthest {sign} what is typical of the month "
                f"of the year, typical being the {typical} over the whole table?",
            ],
            missing_notes(schema, [measure], selection.columns),
        ),
        form=form,
        code=script(
            load(schema, clock, *selection.columns),
            f"typical = df.groupby(df[{clock!r}].dt.month)[{measure!r}].transform({typical!r})",
            f"df['anomaly'] = df[{measure!r}] - typical",
            selection.lines,
            f"anomaly = {part}['anomaly']",
            f"print({printed})",
        ),
        checks=(*selection.checks, (TIES, f"clear_ranks(anomaly, 1, {largest})")),
    )


def growth(schema: Schema, rng: Random) -> Draft:
    """The series that grew or shrank most, in per cent, between two points in time."""
    clock = pick(rng, [clock for clock in schema.clocks() if clock.within and clock.column in schema.years])
    measure = pick(rng, [column for column in schema.measures if schema.frame[column].min() > 0])
    first, last = sorted(pick_some(rng, schema.values(clock.column), 2))
    selection = select(schema, rng, rng.choice((0, 1)), clock.column, clock.within, *schema.measures)
    most = rng.random() < 0.5
    extreme, call = ("highest", "idxmax") if most else ("lowest", "idxmin")
    rows, name, key = selection.rows, schema.say(measure), clock.within
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"over the {rows}, which `{key}` had the {extreme} relative change of {name} from {first} to {last} "
                "(negative for a fall), and how many per cent was it?",
                f"for every `{key}` of the {rows}, compute by how many per cent {name} changed from {first} to {last}. "
                f"Where is that change {extreme} (a fall counts as negative), and how much is it?",
                f"compare {name} in {last} with {first} for each `{key}` among the {rows}: name the one with the "
                f"{extreme} percentage change (signed), and the change.",
            ],
            f"The year is `{clock.column}`. Only those with a value in both years count.",
        ),
        form=forms.labelled(2, "%"),
        code=script(
            load(schema, clock.column, *selection.columns),
            selection.lines,
            f"table = {selection.frame}.pivot(index={key!r}, columns={clock.column!r}, values={measure!r})",
            f"change = (table[{last}] / table[{first}] - 1) * 100",
            f"name = change.{call}()",
            'print(f"{name}:{change[name]:.2f}")',
        ),
        checks=(*selection.checks, (TIES, f"clear_ranks(change, 1, {most})")),
    )


FAMILIES = (
    Family("rolling-extreme", "hard", rolling_extreme),
    Family("monthly-change", "hard", monthly_change),
    Family("calendar-pattern", "hard", calendar_pattern),
    Family("seasonal-anomaly", "expert", seasonal_anomaly),
    Family("growth", "expert", growth),
)
