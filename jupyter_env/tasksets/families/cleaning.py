"""Missing values and outliers, treated by a stated rule before the statistic."""

from __future__ import annotations

from random import Random

from jupyter_env.tasksets import drafts, forms
from jupyter_env.tasksets.drafts import (
    Draft,
    Family,
    Unfit,
    ask,
    load,
    missing_notes,
    pick,
    pick_some,
    script,
    select,
    without,
)
from jupyter_env.tasksets.schema import Schema


def imputed_statistic(schema: Schema, rng: Random) -> Draft:
    """Fill gaps of a measure with the median of the row's group, then take a statistic of all rows."""
    measure = pick(rng, [column for column in schema.measures if schema.has_missing(column)])
    group = pick(rng, schema.groups)
    filler = rng.choice(("median", "mean"))
    method, word = drafts.pick_statistic(schema, rng, measure, ("mean", "std"))
    selection = select(schema, rng, rng.choice((0, 1)), measure, group)
    part, rows, name = selection.frame, selection.rows, schema.say(measure)
    places = schema.decimals(measure) + 1
    changed = f"abs(value - {part}[{measure!r}].{method}()) > {2 * 10**-places}"
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"take the {rows} and fill each missing {name} with the {filler} of its `{group}` group within these "
                f"rows. What is the {word} of the column then?",
                f"impute the missing values of {name} among the {rows} by the {filler} of the rows with the same "
                f"`{group}`; what {word} does {name} have afterwards?",
                f"what is the {word} of {name} over the {rows} once its gaps are filled with the {filler} of the same "
                f"`{group}`, computed from these rows?",
            ],
            f"Leave out rows whose `{measure}` cannot be filled, such as those with no `{group}`.",
            missing_notes(schema, grouped=selection.columns),
        ),
        form=forms.number(places),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"fill = {part}.groupby({group!r})[{measure!r}].transform({filler!r})",
            f"filled = {part}[{measure!r}].fillna(fill).dropna()",
            f"value = filled.{method}()",
            f'print(f"{{value:.{places}f}}")',
        ),
        checks=(
            *selection.checks,
            ("no missing values to treat", f"{part}[{measure!r}].isna().any()"),
            ("the treatment changes nothing", changed),
        ),
    )


def complete_rows(schema: Schema, rng: Random) -> Draft:
    """How many rows have a value in all of some columns, or lack one in at least one of them."""
    gappy = [column for column in schema.measures + schema.groups if schema.has_missing(column)]
    columns = pick_some(rng, gappy, min(len(gappy), rng.choice((2, 2, 3))))
    if not columns:
        raise Unfit
    selection = select(schema, rng, rng.choice((1, 2)), *columns)
    part, rows = selection.frame, selection.rows
    names = " and ".join(f"`{column}`" for column in columns)
    complete = rng.random() < 0.5
    if complete:
        what, code = f"have a value in {names}", f"complete = {part}.dropna(subset={columns!r})"
    else:
        what, code = (
            f"lack a value in at least one of {names}",
            f"complete = {part}.dropna(subset={columns!r})",
        )
    result = "len(complete)" if complete else f"len({part}) - len(complete)"
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"how many of the {rows} {what}?",
                f"count those of the {rows} that {what}.",
                f"check the {rows} for missing values. How many of them {what}?",
            ],
            missing_notes(schema, grouped=selection.columns),
        ),
        form=forms.integer(),
        code=script(load(schema, *selection.columns), selection.lines, code, f"print({result})"),
        checks=(*selection.checks, ("no missing values to treat", f"0 < len(complete) < len({part})")),
    )


def iqr_outliers(schema: Schema, rng: Random) -> Draft:
    """Apply the rule of 1.5 interquartile ranges; count the outliers, or take a statistic without them."""
    measure = pick(rng, schema.measures)
    selection = select(schema, rng, rng.choice((0, 1, 1)), measure)
    part, rows, name, places = selection.frame, selection.rows, schema.say(measure), schema.decimals(measure)
    lines = [
        f"values = {part}[{measure!r}].dropna()",
        "low, high = values.quantile(0.25), values.quantile(0.75)",
        "margin = 1.5 * (high - low)",
        "inside = values.between(low - margin, high + margin)",
    ]
    rule = (
        "An outlier lies more than 1.5 interquartile ranges below the 25th or above the 75th percentile of these rows "
        "(linear interpolation)."
    )
    other = rng.choice(without(schema.measures, measure) or [measure])
    if rng.random() < 0.35:
        form, lines = forms.integer(), [*lines, "print(int((~inside).sum()))"]
        bodies = [
            f"how many of the {rows} are outliers in {name}?",
            f"count the outliers of {name} among the {rows}.",
            f"by the rule of 1.5 interquartile ranges, how many outliers does {name} have among the {rows}?",
        ]
        note = missing_notes(schema, [measure], selection.columns)
    else:
        method, word = drafts.pick_statistic(schema, rng, other, ("mean", "std", "median"))
        places = schema.decimals(other)
        form = forms.number(places)
        lines += [
            f"value = {part}.loc[values[inside].index, {other!r}].{method}()",
            f'print(f"{{value:.{places}f}}")',
        ]
        bodies = [
            f"leave out the outliers in {name} from the {rows}. What is the {word} of {schema.say(other)} over the "
            "rows that remain?",
            f"what is the {word} of {schema.say(other)} over the {rows} after those that are outliers in {name} have "
            "been removed?",
            f"after removing outliers in {name} from the {rows}, what {word} does {schema.say(other)} have?",
        ]
        gaps = f"Rows with a missing `{measure}` are left out too." if schema.has_missing(measure) else ""
        note = f"{gaps} {missing_notes(schema, without([other], measure), selection.columns)}".strip()
    return Draft(
        question=ask(rng, schema, bodies, rule, note),
        form=form,
        code=script(load(schema, *selection.columns), selection.lines, lines),
        checks=(*selection.checks, ("no outliers", "not inside.all() and len(values) >= 8 and margin > 0")),
    )


FAMILIES = (
    Family("imputed-statistic", "hard", imputed_statistic),
    Family("complete-rows", "hard", complete_rows),
    Family("iqr-outliers", "hard", iqr_outliers),
)
