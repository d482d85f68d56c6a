"""Select rows, then one statistic, count, share or name."""

from __future__ import annotations

from random import Random

from jupyter_env.tasksets import drafts, forms
from jupyter_env.tasksets.drafts import (
    TIES,
    TOO_FEW,
    Draft,
    Family,
    ask,
    load,
    missing_notes,
    pick,
    script,
    select,
    without,
)
from jupyter_env.tasksets.schema import Schema


def filtered_aggregate(schema: Schema, rng: Random) -> Draft:
    """One statistic of one measure over the rows that meet a condition."""
    measure = pick(rng, schema.measures)
    method, word = drafts.pick_statistic(schema, rng, measure, ("mean", "median", "std", "max", "min", "sum"))
    selection = select(schema, rng, rng.choice((1, 1, 2)), measure)
    part = selection.frame
    rows, name, places = selection.rows, schema.say(measure), schema.decimals(measure)
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"what is the {word} of {name} over the {rows}?",
                f"compute the {word} of {name} for the {rows}.",
                f"look only at the {rows}. What is their {word} of {name}?",
            ],
            missing_notes(schema, [measure], selection.columns),
        ),
        form=forms.number(places),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"value = {part}[{measure!r}].{method}()",
            f'print(f"{{value:.{places}f}}")',
        ),
        checks=selection.checks,
    )


def filtered_count(schema: Schema, rng: Random) -> Draft:
    """How many rows meet two conditions."""
    selection = select(schema, rng, 2)
    part = selection.frame
    rows = selection.rows
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"how many {rows} does the table hold?",
                f"count the {rows}.",
                f"what is the number of {rows}?",
            ],
            missing_notes(schema, grouped=selection.columns),
        ),
        form=forms.integer(),
        code=script(load(schema, *selection.columns), selection.lines, f"print(len({part}))"),
        checks=selection.checks,
    )


def conditional_share(schema: Schema, rng: Random) -> Draft:
    """Per cent of the selected rows that meet a further condition."""
    selection = select(schema, rng, 1)
    column = pick(rng, without([*schema.categories, *schema.measures], *selection.columns))
    words, mask = drafts.condition(schema, rng, column, frame="part")
    rows = selection.rows
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"of the {rows}, for what percentage does it also hold that {words}?",
                f"what share, in per cent, of the {rows} satisfies that {words}?",
                f"take the {rows}. For what percentage of them is it true that {words}?",
            ],
            _share_note(schema, column),
            missing_notes(schema, grouped=selection.columns),
        ),
        form=forms.number(2, "%"),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"share = ({mask}).mean() * 100",
            'print(f"{share:.2f}")',
        ),
        checks=(*selection.checks, ("answer trivial", "0 < share < 100")),
    )


def _share_note(schema: Schema, column: str) -> str:
    if not schema.has_missing(column):
        return ""
    return f"Rows with a missing `{column}` stay in the denominator and do not satisfy that condition."


def extreme_row(schema: Schema, rng: Random) -> Draft:
    """The name or date of the selected row with the largest or smallest value."""
    labels = [name for name in schema.names if not schema.has_missing(name)]
    labels += [clock.column for clock in schema.clocks() if clock.within is None]
    label, measure = pick(rng, labels), pick(rng, schema.measures)
    selection = select(schema, rng, rng.choice((1, 1, 2)), measure)
    part = selection.frame
    largest = rng.random() < 0.5
    word, pick_row = ("largest", "idxmax") if largest else ("smallest", "idxmin")
    noun, rows, name = schema.table.noun, selection.rows, schema.say(measure)
    held = "when" if label in schema.dates + schema.years else "name"
    form, printed = forms.written_label(schema, label, cell=held)
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"which `{label}` belongs to the {noun} with the {word} {name} among the {rows}?",
                f"give the `{label}` of the {noun} that has the {word} {name} of all {rows}.",
                f"among the {rows}, find the {noun} with the {word} {name}. What is its `{label}`?",
            ],
            missing_notes(schema, [measure], selection.columns),
        ),
        form=form,
        code=script(
            load(schema, label, *selection.columns),
            selection.lines,
            f"{held} = {part}.loc[{part}[{measure!r}].{pick_row}(), {label!r}]",
            f"print({printed})",
        ),
        checks=(
            *selection.checks,
            (TOO_FEW, f"{part}[{measure!r}].count() >= 10"),
            (TIES, f"clear_ranks({part}[{measure!r}], 1, {largest})"),
        ),
        answered=label,
    )


def distinct_count(schema: Schema, rng: Random) -> Draft:
    """How many distinct names come among the selected rows."""
    repeated = [column for column in schema.years if not schema.frame[column].is_unique]
    column = pick(rng, [*schema.groups, *repeated])
    selection = select(schema, rng, rng.choice((1, 2)), column)
    part = selection.frame
    rows = selection.rows
    note = f"A missing `{column}` is no value." if schema.has_missing(column) else ""
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"how many distinct values of `{column}` occur among the {rows}?",
                f"count the different values of `{column}` that the {rows} have.",
                f"take the {rows}. How many different values does `{column}` have there?",
            ],
            note,
            missing_notes(schema, grouped=selection.columns),
        ),
        form=forms.integer(),
        code=script(load(schema, *selection.columns), selection.lines, f"print({part}[{column!r}].nunique())"),
        checks=(
            *selection.checks,
            ("answer trivial", f"{part}[{column!r}].nunique() < df[{column!r}].nunique()"),
        ),
    )


def range_of_values(schema: Schema, rng: Random) -> Draft:
    """The range or interquartile range of a measure over the selected rows."""
    measure = pick(rng, schema.measures)
    selection = select(schema, rng, 1, measure)
    part = selection.frame
    rows, name, places = selection.rows, schema.say(measure), schema.decimals(measure)
    if rng.random() < 0.4:
        word, code = "range (maximum minus minimum)", "values.max() - values.min()"
    else:
        word, code = (
            "interquartile range (75th minus 25th percentile)",
            "values.quantile(0.75) - values.quantile(0.25)",
        )
    note = "Interpolate percentiles linearly, as pandas does by default." if "quantile" in code else ""
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"what is the {word} of {name} over the {rows}?",
                f"how wide is the {word} of {name} for the {rows}?",
                f"take the {rows} and compute the {word} of {name}.",
            ],
            note,
            missing_notes(schema, [measure], selection.columns),
        ),
        form=forms.number(places),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"values = {part}[{measure!r}]",
            f"value = {code}",
            f'print(f"{{value:.{places}f}}")',
        ),
        checks=selection.checks,
    )


def several_statistics(schema: Schema, rng: Random) -> Draft:
    """Three named figures about the selected rows."""
    measure = pick(rng, schema.measures)
    selection = select(schema, rng, rng.choice((1, 1, 2)), measure)
    part, rows, name, places = selection.frame, selection.rows, schema.say(measure), schema.decimals(measure)
    figures = {
        "mean": (f"the mean of {name}", "values.mean()", places),
        "median": (f"the median of {name}", "values.median()", places),
        "std": (f"the sample standard deviation of {name}", "values.std()", places),
        "skew": (f"the skewness of {name} (bias-corrected, as pandas' skew)", "values.skew()", 3),
        "p90": (f"the 90th percentile of {name} (linear interpolation)", "values.quantile(0.9)", places),
        "count": (f"the number of non-missing values of {name}", "values.count()", 0),
    }
    chosen = sorted(rng.sample(list(figures), 3), key=list(figures).index)
    listed = "; ".join(f"`{key}`, {figures[key][0]}" for key in chosen)
    pairs = [
        f"@{key}[{{{figures[key][1]}:.{figures[key][2]}f}}]" if figures[key][2] else f"@{key}[{{{figures[key][1]}}}]"
        for key in chosen
    ]
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"report three figures for the {rows}: {listed}.",
                f"summarise the {rows} by three figures: {listed}.",
                f"for the {rows}, compute: {listed}.",
            ],
            missing_notes(schema, [measure], selection.columns),
        ),
        form=forms.named({key: figures[key][2] for key in chosen}),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"values = {part}[{measure!r}]",
            f'print(f"{", ".join(pairs)}")',
        ),
        checks=(*selection.checks, (TOO_FEW, "values.count() >= 8")),
    )


FAMILIES = (
    Family("filtered-aggregate", "easy", filtered_aggregate),
    Family("filtered-count", "easy", filtered_count),
    Family("conditional-share", "easy", conditional_share),
    Family("extreme-row", "easy", extreme_row),
    Family("distinct-count", "easy", distinct_count),
    Family("range", "easy", range_of_values),
    Family("several-statistics", "hard", several_statistics),
)
