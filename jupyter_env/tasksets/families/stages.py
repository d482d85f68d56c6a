"""Steps that build on each other: choose groups or rows first, then measure; shares of a total."""

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
    pick_some,
    script,
    select,
)
from jupyter_env.tasksets.schema import Schema


def best_of_each_group(schema: Schema, rng: Random) -> Draft:
    """Rank within groups, keep the top rows of each, then a statistic of another measure."""
    group = pick(rng, schema.groups)
    one, two = pick_some(rng, schema.measures, 2)
    k = rng.choice((2, 3, 3, 4, 5, 10))
    method, word = drafts.pick_statistic(schema, rng, two, ("mean", "median", "std"))
    selection = select(schema, rng, rng.choice((0, 1)), group, one, two)
    part, rows, places = selection.frame, selection.rows, schema.decimals(two)
    largest = rng.random() < 0.5
    extreme = "largest" if largest else "smallest"
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"from the {rows}, keep in every `{group}` group the {k} with the {extreme} {schema.say(one)}. What is "
                f"the {word} of {schema.say(two)} over all that are kept?",
                f"rank the {rows} by {schema.say(one)} within their `{group}` and take the {k} {extreme} of each. Give "
                f"the {word} of {schema.say(two)} over the rows taken, pooled.",
                f"for each `{group}` among the {rows}, pick the {k} with the {extreme} {schema.say(one)}; pool them "
                f"and compute the {word} of {schema.say(two)}.",
            ],
            f"Leave out groups with at most {k} non-missing values of `{one}`.",
            missing_notes(schema, [two], [group, *selection.columns]),
        ),
        form=forms.number(places),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"sizes = {part}.groupby({group!r})[{one!r}].transform('count')",
            f"large = {part}[sizes > {k}]",
            f"ranks = large.groupby({group!r})[{one!r}].rank(ascending={not largest}, method='first')",
            f"kept = large[ranks <= {k}]",
            f"value = kept[{two!r}].{method}()",
            f'print(f"{{value:.{places}f}}")',
        ),
        checks=(
            *selection.checks,
            (TOO_FEW, f"len(kept) >= {drafts.MIN_SELECTION} and large[{group!r}].nunique() >= 2"),
            (
                TIES,
                f"all(clear_kth(values, {k}, {largest}) for _, values in large.groupby({group!r})[{one!r}])",
            ),
        ),
    )


def two_stages(schema: Schema, rng: Random) -> Draft:
    """Choose groups by one measure, then take a statistic of another over their rows."""
    group = pick(rng, [column for column in schema.groups if len(schema.values(column)) >= 3])
    one, two = pick_some(rng, schema.measures, 2)
    choose, choose_word = rng.choice((("median", "median"), ("mean", "mean")))
    above = rng.random() < 0.5
    beyond, sign = ("above", ">") if above else ("below", "<")
    selection = select(schema, rng, rng.choice((0, 1)), group, one, two)
    part, rows = selection.frame, selection.rows
    if rng.random() < 0.4:
        aim, form = f"the Pearson correlation of {schema.say(one)} and {schema.say(two)}", forms.number(3)
        line, gaps = f"value = kept[{one!r}].corr(kept[{two!r}])", [one, two]
        printed = 'print(f"{value:.3f}")'
    else:
        method, word = drafts.pick_statistic(schema, rng, two, ("mean", "median", "std"))
        places = schema.decimals(two)
        aim, form, gaps = f"the {word} of {schema.say(two)}", forms.number(places), [one, two]
        line, printed = f"value = kept[{two!r}].{method}()", f'print(f"{{value:.{places}f}}")'
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"among the {rows}, keep those in `{group}` groups whose {choose_word} {schema.say(one)} is {beyond} "
                f"the {choose_word} over all of them. What is {aim} over the rows kept?",
                f"find the `{group}` groups of the {rows} whose {choose_word} of {schema.say(one)} lies {beyond} the "
                f"overall {choose_word}; then give {aim} over the rows of those groups, pooled.",
                f"what is {aim} over the {rows}, once only `{group}` groups with a {choose_word} of {schema.say(one)} "
                f"{beyond} the {choose_word} of all these rows are kept?",
            ],
            "All figures are taken over single rows, not over group figures.",
            missing_notes(schema, gaps, [group, *selection.columns]),
            f"Rows with a missing `{group}` do count in the overall figure." if schema.has_missing(group) else "",
        ),
        form=form,
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"of_groups = {part}.groupby({group!r})[{one!r}].{choose}()",
            f"names = of_groups[of_groups {sign} {part}[{one!r}].{choose}()].index",
            f"kept = {part}[{part}[{group!r}].isin(names)]",
            line,
            printed,
        ),
        checks=(
            *selection.checks,
            (
                TOO_FEW,
                f"len(kept) >= 8 and 1 <= len(names) < len(of_groups) and kept[[{one!r}, {two!r}]].dropna().shape[0] > "
                "5",
            ),
            (
                TIES,
                f"((of_groups.dropna() - {part}[{one!r}].{choose}()).abs() > 1e-9 * of_groups.abs().max()).all()",
            ),
        ),
    )


def cumulative_share(schema: Schema, rng: Random) -> Draft:
    """How many of the largest groups, or rows, make up a share of the total."""
    measure = pick(rng, schema.totals)
    group = pick(rng, [column for column in [*schema.groups, *schema.years] if len(schema.values(column)) >= 5])
    share = rng.choice((25, 30, 40, 50, 60, 70, 75, 80, 90, 95))
    selection = select(schema, rng, rng.choice((0, 1, 1)), group, measure)
    rows, name = selection.rows, schema.say(measure)
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"add up {name} per `{group}` over the {rows}, and rank the groups from the largest sum down. How many "
                f"of them are needed to reach at least {share}% of the grand total?",
                f"what is the smallest number of `{group}` groups that together hold at least {share}% of the total of "
                f"{name} over the {rows}?",
                f"over the {rows}, taking `{group}` groups in the order of their total of {name}, largest first, after "
                f"how many groups is {share}% of the overall total reached?",
            ],
            "The grand total is that of the groups." if schema.has_missing(group) else "",
            missing_notes(schema, [measure], [group, *selection.columns]),
        ),
        form=forms.integer(),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"sums = {selection.frame}.groupby({group!r})[{measure!r}].sum().sort_values(ascending=False)",
            "reached = sums.cumsum() / sums.sum()",
            f"needed = int((reached < {share / 100}).sum()) + 1",
            "print(needed)",
        ),
        checks=(
            *selection.checks,
            ("answer trivial", "2 <= needed < len(sums)"),
            (TIES, f"((reached - {share / 100}).abs() > 1e-9).all()"),
        ),
    )


def share_shift(schema: Schema, rng: Random) -> Draft:
    """By how many percentage points a group's share of a total moved between two times."""
    measure = pick(rng, schema.totals)
    group = pick(rng, schema.groups)
    time = pick(rng, [*schema.years, *schema.dates])
    dated = time in schema.dates
    years = sorted(set(schema.frame[time].dt.year.tolist())) if dated else schema.values(time)
    first, last = sorted(pick_some(rng, years, 2))
    value = pick(rng, schema.values(group))
    name, what = schema.say(measure), f"`{group}` {drafts.shown(value)}"
    year = f"df[{time!r}].dt.year" if dated else f"df[{time!r}]"
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"by how many percentage points did the share of {what} in the total of {name} change from {first} to "
                f"{last}?",
                f"what share of the total {name} does {what} hold in {last}, minus its share in {first}, in percentage "
                "points?",
                f"compute the share of {what} in the total of {name} for {first} and for {last}. What is the change "
                "from the earlier to the later, in percentage points?",
            ],
            f"The year is that of `{time}`. A fall is negative.",
            missing_notes(schema, [measure], [group]),
            f"Rows with a missing `{group}` count in the total." if schema.has_missing(group) else "",
        ),
        form=forms.number(2),
        code=script(
            load(schema, time),
            f"year = {year}",
            f"of_group = df[df[{group!r}] == {value!r}].groupby(year)[{measure!r}].sum()",
            f"share = of_group / df.groupby(year)[{measure!r}].sum() * 100",
            f"change = share[{last}] - share[{first}]",
            'print(f"{change:.2f}")',
        ),
        checks=(("answer trivial", "abs(change) >= 0.05"),),
    )


FAMILIES = (
    Family("best-of-each-group", "expert", best_of_each_group),
    Family("two-stages", "expert", two_stages),
    Family("cumulative-share", "expert", cumulative_share),
    Family("share-shift", "expert", share_shift),
)
