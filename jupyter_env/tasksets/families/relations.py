"""Two measures at once: correlation, a fitted line, one measure split by another."""

from __future__ import annotations

from random import Random

from jupyter_env.tasksets import drafts, forms
from jupyter_env.tasksets.drafts import (
    TIES,
    TOO_FEW,
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
from jupyter_env.tasksets.schema import Schema, decimals_for


def correlation(schema: Schema, rng: Random) -> Draft:
    """The correlation of two measures over the selected rows."""
    one, two = pick_some(rng, schema.measures, 2)
    selection = select(schema, rng, rng.choice((0, 1, 1)), one, two)
    part = selection.frame
    method = rng.choice(("pearson", "pearson", "spearman"))
    word = "Pearson correlation coefficient" if method == "pearson" else "Spearman rank correlation"
    rows, names = selection.rows, f"{schema.say(one)} and {schema.say(two)}"
    # Ranks by hand: pandas needs scipy for method="spearman".
    ranks = ".rank()" if method == "spearman" else ""
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"what is the {word} between {names} over the {rows}?",
                f"how strongly do {names} go together for the {rows}, as the {word}?",
                f"compute the {word} of {names} using the {rows}.",
            ],
            "Tied values get their average rank." if ranks else "",
            _pair_note(schema, one, two),
            missing_notes(schema, grouped=selection.columns),
        ),
        form=forms.number(3),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"pairs = {part}[[{one!r}, {two!r}]].dropna(){ranks}",
            f"value = pairs[{one!r}].corr(pairs[{two!r}])",
            'print(f"{value:.3f}")',
        ),
        checks=(
            *selection.checks,
            (TOO_FEW, "len(pairs) >= 8"),
            ("answer trivial", "abs(value) < 0.9995"),
        ),
    )


def _pair_note(schema: Schema, one: str, two: str) -> str:
    if schema.has_missing(one) or schema.has_missing(two):
        return f"Leave out rows in which `{one}` or `{two}` is missing."
    return ""


def two_measures_count(schema: Schema, rng: Random) -> Draft:
    """How many selected rows beat the mean of two measures at once."""
    one, two = pick_some(rng, schema.measures, 2)
    selection = select(schema, rng, rng.choice((0, 1)), one, two)
    part = selection.frame
    first, second = rng.choice(("above", "below")), rng.choice(("above", "below"))
    signs = {"above": ">", "below": "<"}
    rows = selection.rows
    group = pick(rng, without(schema.groups, one, two)) if schema.groups and rng.random() < 0.3 else None
    if group is not None and group in selection.columns:
        raise Unfit
    whose = f" within its own `{group}`" if group else f" over the {rows}"
    mean = (
        f"{part}.groupby({group!r})[[{one!r}, {two!r}]].transform('mean')"
        if group
        else f"{part}.mean(numeric_only=True)"
    )
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"how many {rows} have {schema.say(one)} {first} its mean and at the same time {schema.say(two)} "
                f"{second} its mean, each mean being taken{whose}?",
                f"count the {rows} with {schema.say(one)} strictly {first} its mean and {schema.say(two)} strictly "
                f"{second} its mean, where each mean is taken{whose}.",
                f"taking each mean{whose}, for how many {rows} is {schema.say(one)} {first} its mean while "
                f"{schema.say(two)} is {second} its mean?",
            ],
            missing_notes(schema, [one, two], [*([group] if group else []), *selection.columns]),
        ),
        form=forms.integer(),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"means = {mean}",
            f"first = {part}[{one!r}] {signs[first]} means[{one!r}]",
            f"second = {part}[{two!r}] {signs[second]} means[{two!r}]",
            "print(int((first & second).sum()))",
        ),
        checks=(
            *selection.checks,
            (
                TIES,
                f"(({part}[{one!r}] - means[{one!r}]).dropna().abs() > 1e-9 * {part}[{one!r}].abs().max()).all()",
            ),
            (
                TIES,
                f"(({part}[{two!r}] - means[{two!r}]).dropna().abs() > 1e-9 * {part}[{two!r}].abs().max()).all()",
            ),
        ),
    )


def quarters_compared(schema: Schema, rng: Random) -> Draft:
    """One measure in the top and in the bottom quantile of another, as a ratio or difference."""
    one, two = pick_some(rng, schema.measures, 2)
    selection = select(schema, rng, rng.choice((0, 1, 1)), one, two)
    part, rows = selection.frame, selection.rows
    low, high = rng.choice(((25, 75), (20, 80), (10, 90), (30, 70), (40, 60)))
    method, word = drafts.pick_statistic(schema, rng, two, ("mean", "median"))
    ratio = rng.random() < 0.5
    how, value, places = (
        ("divided by", "top / bottom", 3) if ratio else ("minus", "top - bottom", schema.decimals(two) + 1)
    )
    band = f"whose {schema.say(one)} is at or above its {high}th percentile"
    other = f"those at or below the {low}th percentile"
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"what is the {word} of {schema.say(two)} over the {rows} {band}, {how} that over {other}?"
                if not selection.columns
                else f"among the {rows}, what is the {word} of {schema.say(two)} for those {band}, {how} "
                f"that for {other}?",
                f"split the {rows} by the percentiles of {schema.say(one)}. Give the {word} of {schema.say(two)} for "
                f"those {band}, {how} the one for {other}.",
                f"compare, among the {rows}, those {band} with {other}: the {word} of {schema.say(two)} of the former "
                f"{how} that of the latter.",
            ],
            "Take both percentiles over these rows, interpolated linearly.",
            missing_notes(schema, [one, two], selection.columns),
        ),
        form=forms.number(places),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"low, high = {part}[{one!r}].quantile({low / 100}), {part}[{one!r}].quantile({high / 100})",
            f"top = {part}.loc[{part}[{one!r}] >= high, {two!r}].{method}()",
            f"bottom = {part}.loc[{part}[{one!r}] <= low, {two!r}].{method}()",
            f"value = {value}",
            f'print(f"{{value:.{places}f}}")',
        ),
        checks=(
            *selection.checks,
            (TOO_FEW, f"{part}[[{one!r}, {two!r}]].dropna().shape[0] >= 15 and abs(bottom) > 1e-9"),
            (TIES, f"low < high and {_clear_limits(part, one, low, high)}"),
        ),
    )


def _clear_limits(part: str, column: str, low: int, high: int) -> str:
    """That no value differs from a limit by float noise only."""
    values = f"{part}[{column!r}].dropna()"
    return f"all(((({values} - limit).abs() > 1e-9) | ({values} == limit)).all() for limit in (low, high))"


def fitted_line(schema: Schema, rng: Random) -> Draft:
    """A least-squares line: R squared, the residual deviation, or the prediction at a value."""
    y, x = pick_some(rng, [*schema.measures, *schema.years], 2)
    if y in schema.years:
        raise Unfit
    selection = select(schema, rng, rng.choice((0, 1, 1)), x, y)
    part, rows, places = selection.frame, selection.rows, schema.decimals(y)
    at = drafts.threshold(schema, x, rng.uniform(0.1, 0.9))
    aim, code, decimals = rng.choice(
        (
            (
                "what share of the variance does it explain (R squared)?",
                "1 - (residuals**2).sum() / ((y - y.mean()) ** 2).sum()",
                3,
            ),
            (
                "what is the root of the mean of its squared residuals?",
                "(residuals**2).mean() ** 0.5",
                places,
            ),
            (f"what does it predict where `{x}` is {at}?", f"intercept + slope * {at}", places),
            ("what is its largest absolute residual?", "residuals.abs().max()", places),
        )
    )
    gaps = schema.has_missing(x) or schema.has_missing(y)
    names = f"{schema.say(y)} on {schema.say(x)}"
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"fit a straight line with intercept, by least squares, of {names} over the {rows}; {aim}",
                f"regress {names} (ordinary least squares with an intercept) using the {rows}. "
                f"{aim[0].upper()}{aim[1:]}",
                f"take the least-squares regression line of {names}, with intercept, for the {rows}: {aim}",
            ],
            f"Leave out rows in which `{x}` or `{y}` is missing." if gaps else "",
            missing_notes(schema, grouped=selection.columns),
        ),
        form=forms.number(decimals),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"pairs = {part}.dropna(subset=[{x!r}, {y!r}])",
            f"x, y = pairs[{x!r}], pairs[{y!r}]",
            "slope = x.cov(y) / x.var()",
            "intercept = y.mean() - slope * x.mean()",
            "residuals = y - (intercept + slope * x)",
            f"value = {code}",
            f'print(f"{{value:.{decimals}f}}")',
        ),
        checks=(
            *selection.checks,
            (TOO_FEW, "len(pairs) >= 10 and x.nunique() > 3 and residuals.abs().max() > 1e-6"),
        ),
    )


def steepest_slope(schema: Schema, rng: Random) -> Draft:
    """A least-squares slope per group: the group where it is extreme, with the slope."""
    group = pick(rng, [column for column in schema.groups if len(schema.values(column)) <= 200])
    y, x = pick_some(rng, [*schema.measures, *schema.years], 2)
    if y in schema.years:
        raise Unfit
    selection = select(schema, rng, rng.choice((0, 1)), group, x, y)
    part, rows = selection.frame, selection.rows
    least = rng.choice((6, 8, 10))
    largest = rng.random() < 0.5
    extreme, call = ("highest", "idxmax") if largest else ("lowest", "idxmin")
    ratio = float(schema.frame[y].std() / (schema.frame[x].std() or 1.0))
    places = decimals_for(ratio) + 1
    gaps = schema.has_missing(x) or schema.has_missing(y)
    slope = f"the least-squares slope of {schema.say(y)} on {schema.say(x)}"
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"for each `{group}` among the {rows}, fit {slope} (with intercept). Which group has the {extreme} "
                "slope, and what is it?",
                f"in which `{group}` is {slope} (a straight line with intercept) {extreme}, over the {rows}, and how "
                "much is it?",
                f"group the {rows} by `{group}` and compute {slope}, with an intercept, in each group. Name the group "
                f"with the {extreme} slope and give the slope.",
            ],
            f"Only groups with at least {least} rows{' that have both values' if gaps else ''} count.",
            f"Leave out rows in which `{x}` or `{y}` is missing." if gaps else "",
            missing_notes(schema, grouped=[group, *selection.columns]),
        ),
        form=forms.labelled(places),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"pairs = {part}.dropna(subset=[{x!r}, {y!r}])",
            "slopes = {}",
            f"for name, rows in pairs.groupby({group!r}):",
            f"    if len(rows) >= {least} and rows[{x!r}].nunique() > 1:",
            f"        slopes[name] = rows[{x!r}].cov(rows[{y!r}]) / rows[{x!r}].var()",
            "slopes = pd.Series(slopes)",
            f"best = slopes.{call}()",
            f'print(f"{{best}}:{{slopes[best]:.{places}f}}")',
        ),
        checks=(*selection.checks, (TIES, f"clear_ranks(slopes, 1, {largest})")),
    )


FAMILIES = (
    Family("correlation", "medium", correlation),
    Family("two-measures-count", "medium", two_measures_count),
    Family("quarters-compared", "expert", quarters_compared),
    Family("fitted-line", "expert", fitted_line),
    Family("steepest-slope", "expert", steepest_slope),
)
