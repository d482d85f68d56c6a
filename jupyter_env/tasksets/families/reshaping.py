"""Pivot, melt and join before counting."""

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
from jupyter_env.tasksets.schema import Schema


def pivot_cell(schema: Schema, rng: Random) -> Draft:
    """The combination of two groupings with the highest or lowest statistic."""
    keys = [*schema.categories, *schema.years]
    one, two = pick_some(rng, keys, 2)
    measure = pick(rng, schema.measures)
    method, word = drafts.pick_statistic(schema, rng, measure, ("mean", "median", "max", "min", "sum"))
    selection = select(schema, rng, rng.choice((0, 1)), one, two, measure)
    largest = rng.random() < 0.5
    extreme, call = ("highest", "idxmax") if largest else ("lowest", "idxmin")
    rows, name = selection.rows, schema.say(measure)
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"which combination of `{one}` and `{two}` has the {extreme} {word} of {name} over the {rows}?",
                f"pivot the {rows} to a table with `{one}` as rows, `{two}` as columns and the {word} of {name} in the "
                f"cells. Which cell is {extreme}?",
                f"for which pair of `{one}` and `{two}` is the {word} of {name} over the {rows} {extreme}?",
            ],
            f"Answer with the `{one}` and then the `{two}`. Only pairs with at least 2 non-missing values count.",
            missing_notes(schema, grouped=[one, two, *selection.columns]),
        ),
        form=forms.list_of_texts(_pair_mark(schema, one, two), True, "Values are written as in the table."),
        code=script(
            load(schema, *selection.columns),
            selection.lines,
            f"stats = {selection.frame}.groupby([{one!r}, {two!r}])[{measure!r}].agg(['count', {method!r}])",
            f"values = stats.loc[stats['count'] >= 2, {method!r}]",
            f"pair = values.{call}()",
            f"print({_pair_mark(schema, one, two)!r}.join(str(value) for value in pair))",
        ),
        checks=(*selection.checks, (TIES, f"clear_ranks(values, 1, {largest})")),
    )


def _pair_mark(schema: Schema, one: str, two: str) -> str:
    return forms.separator([str(value) for value in schema.values(one) + schema.values(two)])


def melted_column(schema: Schema, rng: Random) -> Draft:
    """Columns of one unit: a statistic of all their values, or which of them is extreme in most rows."""
    if len(schema.wide) < 3:
        raise Unfit
    columns = sorted(rng.sample(schema.wide, rng.randint(3, len(schema.wide))), key=list(schema.frame.columns).index)
    selection = select(schema, rng, rng.choice((0, 1, 1)), *columns)
    part, rows = selection.frame, selection.rows
    names = ", ".join(f"`{column}`" for column in columns)
    places = max(schema.decimals(column) for column in columns)
    largest = rng.random() < 0.5
    extreme, call = ("largest", "idxmax") if largest else ("smallest", "idxmin")
    method, word = drafts.pick_statistic(schema, rng, columns[0], ("mean", "median", "std"))
    if rng.random() < 0.5:
        bodies = [
            f"melt the columns {names} of the {rows} into one long column of values. What is its {word}?",
            f"what is the {word} of all values in the columns {names} together, over the {rows}?",
            f"read {names} as one long list of values over the {rows}, and give the {word} of the list.",
        ]
        form, clear = forms.number(places), "len(long) > 0"
        lines = [
            f"long = {part}.melt(value_vars={columns!r})",
            f"value = long['value'].{method}()",
            f'print(f"{{value:.{places}f}}")',
        ]
    else:
        bodies = [
            f"which of the columns {names} holds the {extreme} of these values most often, row by row, over the "
            f"{rows}?",
            f"for each of the {rows} find which of {names} is {extreme}. Which column wins most often?",
            f"compare {names} within each of the {rows}. Which column has the {extreme} value in most rows?",
        ]
        form = forms.one_of(columns, "Give the name of the column and nothing else.")
        first = f"{part}[{columns!r}].rank(axis=1, method='min', ascending={not largest}) == 1"
        clear = f"clear_ranks(wins, 1) and (({first}).sum(axis=1) <= 1).all()"
        lines = [
            f"winners = {part}[{columns!r}].dropna().{call}(axis=1)",
            "wins = winners.value_counts()",
            "print(wins.idxmax())",
        ]
    gaps = any(schema.has_missing(column) for column in columns)
    return Draft(
        question=ask(
            rng,
            schema,
            bodies,
            "Ignore missing values." if gaps else "",
            missing_notes(schema, grouped=selection.columns),
        ),
        form=form,
        code=script(load(schema, *selection.columns), selection.lines, lines),
        checks=(*selection.checks, (TIES, clear)),
    )


def joined_tables(schema: Schema, rng: Random) -> Draft:
    """Join two tables on a key; compare rows by a measure of the other table."""
    join = pick(rng, schema.joins)
    other, here, there = join.other, join.key_here, join.key_there
    one = pick(rng, without(schema.measures, here))
    two = pick(rng, without(other.measures, there))
    selection = select(schema, rng, rng.choice((0, 1, 1, 1)), one)
    part, rows = selection.frame, selection.rows
    files = f"`data/{schema.table.path}` (the first table) and `data/{other.table.path}` (the second)"
    key = f"`{here}`" if here == there else f"`{here}` of the first with `{there}` of the second"
    first, second = f"{schema.say(one)} of the first table", f"{other.say(two)} of the second"
    # Pandas tells columns of one name apart by these endings.
    one_name, two_name = (f"{one}_x", f"{two}_y") if one == two else (one, two)
    same_key = f"on={here!r}" if here == there else f"left_on={here!r}, right_on={there!r}"
    if one != two and (one in other.frame or two in schema.frame):
        raise Unfit
    kind = rng.choice(("correlation", "gap", "share"))
    if kind == "correlation":
        form, ending = forms.number(3), ['print(f"{a.corr(b):.3f}")']
        aims = [
            f"what is the Pearson correlation between {first} and {second}?",
            f"how do {first} and {second} correlate (Pearson)?",
        ]
        clear = "abs(a.corr(b)) < 0.9995"
    elif kind == "gap":
        per_cent = rng.choice((25, 40, 50, 60, 75, 80, 90))
        places = schema.decimals(one) + 1
        form = forms.number(places)
        ending = [
            f"high = b > b.quantile({per_cent / 100})",
            f'print(f"{{a[high].mean() - a[~high].mean():.{places}f}}")',
        ]
        limit = f"the {per_cent}th percentile of {second} over the joined rows (linear interpolation)"
        aims = [
            f"subtract the mean of {first} over the joined rows not above {limit} from its mean over those above. What "
            "is the difference?",
            f"what is the mean of {first} where {second} is strictly above its {per_cent}th percentile over the joined "
            "rows (linear interpolation), minus the mean over the other joined rows?",
        ]
        clear = "min(high.sum(), (~high).sum()) >= 3"
    else:
        form, ending = (
            forms.number(2, "%"),
            ['print(f"{((a > a.mean()) & (b > b.mean())).mean() * 100:.2f}")'],
        )
        aims = [
            f"for what percentage of the joined rows are {first} and {second} both strictly above their means over the "
            "joined rows?",
            f"in how many per cent of the joined rows is {first} strictly above its mean while {second} is above its "
            "own, both means taken over the joined rows?",
        ]
        clear = "((a - a.mean()).abs() > 1e-9).all() and ((b - b.mean()).abs() > 1e-9).all()"
    gaps = schema.has_missing(one) or other.has_missing(two)
    return Draft(
        question=ask(
            rng,
            schema,
            [
                f"inner-join the {rows} of the first table with the second, matching {key}; {rng.choice(aims)}",
                f"match the {rows} of the first table with the rows of the second by {key}, keeping only rows with a "
                f"partner; {rng.choice(aims)}",
                f"after an inner join of the {rows} of the first table with the second table ({key}), "
                f"{rng.choice(aims)}",
            ],
            "Conditions on columns apply to the first table." if selection.columns else "",
            "Leave out joined rows with a missing value in either of the two measures." if gaps else "",
            missing_notes(schema, grouped=selection.columns),
            files=files,
        ),
        form=form,
        code=script(
            load(schema, here, *selection.columns),
            selection.lines,
            load(other, there, name="other"),
            f"joined = {part}.merge(other, {same_key}, how='inner')",
            f"joined = joined.dropna(subset=[{one_name!r}, {two_name!r}])" if gaps else [],
            f"a, b = joined[{one_name!r}], joined[{two_name!r}]",
            ending,
        ),
        checks=(*selection.checks, (TOO_FEW, "len(joined) >= 8"), (TIES, clear)),
        others=(other.table.path,),
    )


FAMILIES = (
    Family("pivot-cell", "hard", pivot_cell),
    Family("melted-column", "hard", melted_column),
    Family("joined-tables", "expert", joined_tables),
)
