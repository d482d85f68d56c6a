"""Weights, quantiles and standard scores."""

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


def quantile_count(schema: Schema, rng: Random) -> Draft:
    """How many selected rows lie above a percentile of the whole table."""
    measure = pick(rng, schema.measures)
    per_cent = rng.choice((10, 20, 25, 40, 60, 75, 80, 90, 95))
    above = rng.random() < 0.6
    word, sign = ("above", ">") if above else ("below", "<")
    selection = select(schema, rng, 1, measure)
    part = selection.frame
    rows, name = selection.rows, schema.say(measure)
    limit = f"the {per_cent}th percentile of {name} over the whole table"
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"how many of the {rows} lie strictly {word} {limit}?",
                f"find {limit}. How many of the {rows} lie strictly {word} it?",
                f"count the {rows} that lie strictly {word} {limit}.",
            ],
            "Interpolate the percentile linearly, as pandas does by default.",
            missing_notes(schema, [measure], selection.columns),
        ),
        form=forms.integer(),
        code=script(
            load(schema, *selection.columns),
            f"limit = df[{measure!r}].quantile({per_cent / 100})",
            selection.lines,
            f"print(int(({part}[{measure!r}] {sign} limit).sum()))",
        ),
        checks=(
            *selection.checks,
            (
                TIES,
                f"((df[{measure!r}] - limit).abs() > 1e-9 * abs(limit)).all() or limit in set(df[{measure!r}])",
            ),
        ),
    )


def weighted_mean(schema: Schema, rng: Random) -> Draft:
    """The mean of one measure weighted by another."""
    weights = [column for column in schema.measures if schema.frame[column].min() > 0]
    if schema.totals:
        weights = [column for column in weights if column in schema.totals]
    weight = pick(rng, weights)
    measure = pick(rng, without(schema.measures, weight))
    selection = select(schema, rng, rng.choice((0, 1, 1)), measure, weight)
    part, rows, name, places = selection.frame, selection.rows, schema.say(measure), schema.decimals(measure)
    gaps = schema.has_missing(measure) or schema.has_missing(weight)
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"what is the mean of {name}, weighted by {schema.say(weight)}, over the {rows}?",
                f"compute the weighted mean of {name} for the {rows}, with {schema.say(weight)} as the weights.",
                f"weighting each row by {schema.say(weight)}, what is the average of {name} over the {rows}?",
            ],
            f"Leave out rows in which `{measure}` or `{weight}` is missing." if gaps else "",
            missing_notes(schema, grouped=selection.columns),
        ),
        form=forms.number(places),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"rows = {part}.dropna(subset=[{measure!r}, {weight!r}])",
            f"value = (rows[{measure!r}] * rows[{weight!r}]).sum() / rows[{weight!r}].sum()",
            f'print(f"{{value:.{places}f}}")',
        ),
        checks=(
            *selection.checks,
            (TOO_FEW, f"len(rows) >= {drafts.MIN_SELECTION}"),
        ),
    )


def zscore_count(schema: Schema, rng: Random) -> Draft:
    """How many rows have a standard score beyond a limit."""
    measure = pick(rng, schema.measures)
    selection = select(schema, rng, rng.choice((0, 1, 1, 2)), measure)
    part, rows, name = selection.frame, selection.rows, schema.say(measure)
    limit = rng.choice((0.5, 0.75, 1.0, 1.25, 1.5, 2.0))
    words, test = rng.choice(
        (
            (f"above {limit}", f"scores > {limit}"),
            (f"below -{limit}", f"scores < -{limit}"),
            (f"between -{limit} and {limit}", f"scores.abs() < {limit}"),
            (f"further than {limit} from 0, on either side", f"scores.abs() > {limit}"),
        )
    )
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"standardise {name} over the {rows} (subtract the mean, divide by the sample standard deviation). How "
                f"many of them have a score {words}?",
                f"how many of the {rows} have a z-score of {name} {words}, with the mean and the sample standard "
                "deviation of these rows?",
                f"turn {name} of the {rows} into z-scores, using their own mean and sample standard deviation, and "
                f"count the scores {words}.",
            ],
            missing_notes(schema, [measure], selection.columns),
        ),
        form=forms.integer(),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"values = {part}[{measure!r}]",
            "scores = (values - values.mean()) / values.std()",
            f"print(int(({test}).sum()))",
        ),
        checks=(*selection.checks, (TIES, f"((scores.dropna().abs() - {limit}).abs() > 1e-9).all()")),
    )


def score_within_group(schema: Schema, rng: Random) -> Draft:
    """Standardise within groups: the largest score, or how many rows go beyond a limit."""
    group, measure = pick(rng, schema.groups), pick(rng, schema.measures)
    selection = select(schema, rng, rng.choice((0, 1, 1)), group, measure)
    part, rows, name = selection.frame, selection.rows, schema.say(measure)
    how = "with the group's mean and sample standard deviation"
    steps = f"standardise {name} of the {rows} within each `{group}` ({how})"
    scale = f"the `{group}` group of the row (z-score {how})"
    lines = [
        f"groups = {part}.groupby({group!r})[{measure!r}]",
        f"scores = ({part}[{measure!r}] - groups.transform('mean')) / groups.transform('std')",
        "scores = scores[groups.transform('count') >= 5]",
    ]
    if rng.random() < 0.5:
        limit, (word, test) = (
            rng.choice((1.0, 1.5, 2.0, 2.5)),
            rng.choice((("above", "> "), ("below", "< -"))),
        )
        bound = f"{'-' if word == 'below' else ''}{limit}"
        bodies = [
            f"{steps}. How many scores are {word} {bound}?",
            f"how many of the {rows} have a {name} {word} {bound} when it is measured against {scale}?",
            f"measure {name} of the {rows} against {scale}. Count the scores {word} {bound}.",
        ]
        form, lines = forms.integer(), [*lines, f"print(int((scores {test}{limit}).sum()))"]
        clear = f"((scores.dropna() - {bound}).abs() > 1e-9).all()"
    else:
        word, call = rng.choice((("highest", "max"), ("lowest", "min")))
        bodies = [
            f"{steps}. What is the {word} score?",
            f"how far does {name} of one of the {rows} go at its {word}, measured against {scale}?",
            f"measure {name} of the {rows} against {scale}. Give the {word} score.",
        ]
        form, lines = forms.number(3), [*lines, f'print(f"{{scores.{call}():.3f}}")']
        clear = "scores.abs().max() < 1e9"
    return Draft(
        question=ask(
            rng,
            schema,
            bodies,
            "Leave out groups with fewer than 5 non-missing values.",
            missing_notes(schema, grouped=[group, *selection.columns]),
        ),
        form=form,
        code=script(load(schema, *selection.columns), selection.lines, lines),
        checks=(*selection.checks, (TOO_FEW, "scores.count() >= 10"), (TIES, clear)),
    )


FAMILIES = (
    Family("quantile-count", "medium", quantile_count),
    Family("weighted-mean", "hard", weighted_mean),
    Family("zscore-count", "hard", zscore_count),
    Family("score-within-group", "expert", score_within_group),
)
