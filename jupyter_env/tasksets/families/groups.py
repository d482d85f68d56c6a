"""Group rows, then compare, rank or name the groups."""

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


def group_rank(schema: Schema, rng: Random) -> Draft:
    """The group with the highest or lowest statistic among the groups with enough values."""
    group, measure = pick(rng, schema.groups), pick(rng, schema.measures)
    method, word = drafts.pick_statistic(schema, rng, measure, ("mean", "median", "std", "sum"))
    selection = select(schema, rng, rng.choice((0, 1, 1)), group, measure)
    part = selection.frame
    least = rng.choice((3, 4, 5, 8, 10))
    largest = rng.random() < 0.5
    extreme = "highest" if largest else "lowest"
    rows, name = selection.rows, schema.say(measure)
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"which `{group}` has the {extreme} {word} of {name} over the {rows}?",
                f"group the {rows} by `{group}`. Which group has the {extreme} {word} of {name}?",
                f"for which `{group}` is the {word} of {name} {extreme}, taken over the {rows}?",
            ],
            f"Only consider groups with at least {least} non-missing values of `{measure}`.",
            missing_notes(schema, grouped=[group, *selection.columns]),
        ),
        form=forms.name_of(schema, group),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"stats = {part}.groupby({group!r})[{measure!r}].agg(['count', {method!r}])",
            f"ranked = stats.loc[stats['count'] >= {least}, {method!r}]",
            f"print(ranked.{'idxmax' if largest else 'idxmin'}())",
        ),
        checks=(*selection.checks, (TIES, f"clear_ranks(ranked, 1, {largest})")),
        answered=group,
    )


def group_gap(schema: Schema, rng: Random) -> Draft:
    """How much two groups differ in a statistic: difference, ratio or per cent."""
    group, measure = pick(rng, schema.groups), pick(rng, schema.measures)
    method, word = drafts.pick_statistic(schema, rng, measure, ("mean", "median", "std"))
    one, two = pick_some(rng, schema.values(group), 2)
    selection = select(schema, rng, rng.choice((0, 0, 1)), group, measure)
    part = selection.frame
    rows, name, places = selection.rows, schema.say(measure), schema.decimals(measure)
    first, second = f"`{group}` {drafts.shown(one)}", f"`{group}` {drafts.shown(two)}"
    among = f" among the {rows}" if selection.columns else ""
    ratio = rng.random() < 0.35
    if ratio:
        places, code = 3, "first / second"
        bodies = [
            f"what is the ratio of the {word} of {name} for {first} to that for {second}{among}?",
            f"divide the {word} of {name} for {first} by the one for {second}{among}. What do you get?",
            f"how many times as large is the {word} of {name} for {first} as for {second}{among}?",
        ]
    else:
        code = "abs(first - second)"
        bodies = [
            f"by how much do the {word}s of {name} for {first} and for {second} differ{among}?",
            f"what is the absolute difference between the {word} of {name} for {first} and for {second}{among}?",
            f"compare {first} with {second}{among}: how far apart are their {word}s of {name}, as an absolute number?",
        ]
    return Draft(
        question=ask(rng, schema, bodies, missing_notes(schema, [measure], selection.columns)),
        form=forms.number(places),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"values = {part}.groupby({group!r})[{measure!r}].{method}()",
            f"first, second = values[{one!r}], values[{two!r}]",
            f"value = {code}",
            f'print(f"{{value:.{places}f}}")',
        ),
        checks=(
            *selection.checks,
            (TOO_FEW, _enough_in_groups(part, group, measure, [one, two])),
            ("answer trivial", "abs(second) > 1e-9"),
        ),
    )


def _enough_in_groups(part: str, group: str, measure: str, values: list[object]) -> str:
    counts = f"{part}.groupby({group!r})[{measure!r}].count()"
    return f"{counts}.reindex({values!r}).fillna(0).min() >= {drafts.MIN_SELECTION}"


def top_groups(schema: Schema, rng: Random) -> Draft:
    """The k groups with the highest or lowest statistic, in order."""
    k = rng.choice((2, 3, 3, 4, 5))
    group = pick(rng, [column for column in schema.groups if len(schema.values(column)) > k])
    measure = pick(rng, schema.measures)
    method, word = drafts.pick_statistic(schema, rng, measure, ("mean", "median", "max", "min", "sum"))
    selection = select(schema, rng, rng.choice((0, 1)), group, measure)
    part = selection.frame
    largest = rng.random() < 0.5
    extreme, order = ("highest", "highest first") if largest else ("lowest", "lowest first")
    rows, name = selection.rows, schema.say(measure)
    mark = forms.separator([str(value) for value in schema.values(group)])
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"which {k} values of `{group}` have the {extreme} {word} of {name} over the {rows}, {order}?",
                f"rank the values of `{group}` by their {word} of {name} over the {rows} and list the {extreme} {k}, "
                f"{order}.",
                f"group the {rows} by `{group}`, take the {word} of {name}, and name the {k} groups where it is "
                f"{extreme}, {order}.",
            ],
            missing_notes(schema, [measure], [group, *selection.columns]),
        ),
        form=forms.list_of_names(schema, group, ordered=True),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"values = {part}.groupby({group!r})[{measure!r}].{method}()",
            f"top = values.{'nlargest' if largest else 'nsmallest'}({k})",
            f"print({mark!r}.join(str(name) for name in top.index))",
        ),
        checks=(*selection.checks, (TIES, f"clear_ranks(values, {k}, {largest})")),
    )


def labelled_group(schema: Schema, rng: Random) -> Draft:
    """The extreme group together with its value."""
    group, measure = pick(rng, schema.groups), pick(rng, schema.measures)
    method, word = drafts.pick_statistic(schema, rng, measure, ("mean", "median", "std", "sum"))
    selection = select(schema, rng, rng.choice((0, 1, 1)), group, measure)
    part = selection.frame
    largest = rng.random() < 0.5
    extreme = "highest" if largest else "lowest"
    rows, name, places = selection.rows, schema.say(measure), schema.decimals(measure)
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"which `{group}` has the {extreme} {word} of {name} over the {rows}, and how much is it?",
                f"name the `{group}` with the {extreme} {word} of {name} for the {rows}, together with that {word}.",
                f"after grouping the {rows} by `{group}`, where is the {word} of {name} {extreme}, and what is its "
                "value there?",
            ],
            "Leave out groups with fewer than 3 non-missing values.",
            missing_notes(schema, grouped=[group, *selection.columns]),
        ),
        form=forms.labelled(places),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"stats = {part}.groupby({group!r})[{measure!r}].agg(['count', {method!r}])",
            f"values = stats.loc[stats['count'] >= 3, {method!r}]",
            f"name = values.{'idxmax' if largest else 'idxmin'}()",
            f'print(f"{{name}}:{{values[name]:.{places}f}}")',
        ),
        checks=(*selection.checks, (TIES, f"clear_ranks(values, 1, {largest})")),
    )


def groups_beyond_overall(schema: Schema, rng: Random) -> Draft:
    """All groups whose mean exceeds, or falls short of, that of all selected rows."""
    group = pick(rng, [column for column in schema.groups if 3 <= len(schema.values(column)) <= 60])
    measure = pick(rng, schema.measures)
    selection = select(schema, rng, rng.choice((0, 1, 1)), group, measure)
    part = selection.frame
    method, word = rng.choice((("mean", "mean"), ("median", "median")))
    above = rng.random() < 0.5
    beyond, sign = ("higher", ">") if above else ("lower", "<")
    rows, name = selection.rows, schema.say(measure)
    mark = forms.separator([str(value) for value in schema.values(group)])
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"which values of `{group}` have a {beyond} {word} of {name} than all {rows} together? Name all of "
                "them.",
                f"list every `{group}` whose {word} of {name}, over the {rows}, is {beyond} than the {word} over all "
                "of them together.",
                f"take the {rows}. For which values of `{group}` is the {word} of {name} {beyond} than the overall "
                f"{word}?",
            ],
            "The overall figure is that of all these rows, not the one of the groups' figures.",
            missing_notes(schema, [measure], [group, *selection.columns]),
            f"Rows with a missing `{group}` do count in the overall figure." if schema.has_missing(group) else "",
        ),
        form=forms.list_of_names(schema, group, ordered=False),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"overall = {part}[{measure!r}].{method}()",
            f"values = {part}.groupby({group!r})[{measure!r}].{method}()",
            f"names = values[values {sign} overall].index",
            f"print({mark!r}.join(str(name) for name in names))",
        ),
        checks=(
            *selection.checks,
            ("answer trivial", "2 <= len(names) <= 6 and len(names) < len(values)"),
            (TIES, "((values.dropna() - overall).abs() > 1e-6 * abs(overall)).all()"),
        ),
    )


FAMILIES = (
    Family("group-rank", "medium", group_rank),
    Family("group-gap", "medium", group_gap),
    Family("top-groups", "medium", top_groups),
    Family("labelled-group", "medium", labelled_group),
    Family("groups-beyond-overall", "medium", groups_beyond_overall),
)
