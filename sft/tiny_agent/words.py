"""Names and values without end, so that a model must copy what it sees rather than remember what it saw.

With a closed set of names a small model learns the names; with an endless one, copying is the only way to fit
(docs/tiny-agent.md has the figures).
"""

from __future__ import annotations

import re
from functools import cache
from random import Random

# What is listed more often is drawn more often; the empty text stands for none.
_ONSETS = (
    """
    b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kn l m n p ph pl pr qu r s sc sh sk sl sm sn sp st str sw
    t th tr tw v w wh x y z
""".split()
    + [""] * 2
)
_VOWELS = """
    a e i o u a e i o ai au ay ea ee ei ia ie io oa oo ou ow ue y
""".split()
_CODAS = (
    """
    b c ck d f ft g k l ll lt m mp n nd ng nt p r rd rk rl rm rn rs s sh ss st t th ts v w x z
""".split()
    + [""] * 14
)
_OF_CODE = """
    data set sets stats models value values part rows row name names mean median std sum count max min first second top
    kept large low high share change year date month day hour week time index other left right number size group table
    csv df x y key label answer print text list total rank score fill import temp rate price age id code class type
""".split()
"""Names that hold the code's own words are hard to copy: after `data` nearly always comes a slash."""
_RARE = "áäãåçéèêíïñóöøôúüßşžčđł"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@cache
def _known() -> tuple[str, ...]:
    """Some thousand English words: those of Python's own documentation."""
    from pydoc_data.topics import topics

    found = {word for text in topics.values() for word in re.findall(r"\b[a-z]{3,12}\b", text)}
    return tuple(sorted(found))


def word(rng: Random) -> str:
    """A word in lower case: made of syllables, English, one of the code's own, two in one, or letters by chance."""
    draw = rng.random()
    if draw < 0.33:
        return _syllables(rng)
    if draw < 0.68:
        return rng.choice(_known())
    if draw < 0.76:
        return rng.choice(_OF_CODE)
    if draw < 0.84:
        return rng.choice((*_OF_CODE, rng.choice(_known()))) + rng.choice((rng.choice(_known()), _syllables(rng)))
    if draw < 0.96:
        return "".join(rng.choice(_LETTERS) for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8))))
    return rng.choice(_LETTERS) * rng.randint(2, 8)


def _syllables(rng: Random) -> str:
    count = rng.choice((1, 1, 2, 2, 2, 3, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def words(rng: Random, least: int, most: int) -> list[str]:
    """So many words."""
    return [word(rng) for _ in range(rng.randint(least, most))]


STYLES = (
    ("snake",) * 9 + ("camel",) * 2 + ("pascal",) * 2 + ("Snake",) + ("Title",) * 2 + ("plain",) * 2 + ("UPPER",) * 2
)
"""Of columns; those that are more common in tables are listed more often."""


def stems(rng: Random) -> tuple[str, ...]:
    """Words that the names or values of one table share, as in "sepal length" and "sepal width"; often none."""
    return tuple(words(rng, 1, 3)) if rng.random() < 0.45 else ()


def column_name(rng: Random, shared: tuple[str, ...] = (), style: str | None = None) -> str:
    """The name of a column.

    Args:
        shared: see `stems`.
        style: one of `STYLES`; None draws one.
    """
    parts = words(rng, 1, rng.choice((1, 2, 3))) if rng.random() < 0.95 else words(rng, 4, 5)
    if shared and rng.random() < 0.7:
        parts.insert(rng.choice((0, len(parts))), rng.choice(shared))
    name = _styled(parts, style or rng.choice(STYLES))
    extra = rng.random()
    if extra < 0.06:
        name += f"_{rng.randint(1, 2030)}"
    elif extra < 0.10:
        name += str(rng.randint(0, 99))
    elif extra < 0.14:
        name += f" ({_syllables(rng)[:3]})"
    elif extra < 0.16:
        name += rng.choice((".1", "%", "/day", "-id", "."))
    return name


def _styled(parts: list[str], style: str) -> str:
    capitals = [part.capitalize() for part in parts]
    return {
        "snake": "_".join(parts),
        "camel": "".join([parts[0], *capitals[1:]]),
        "pascal": "".join(capitals),
        "Snake": "_".join(capitals),
        "Title": " ".join(capitals),
        "plain": " ".join(parts),
        "UPPER": "_".join(parts).upper(),
    }[style]


def value(rng: Random, shared: tuple[str, ...] = ()) -> str:
    """A text in a cell: a name, a place, a code, a range."""
    if shared and rng.random() < 0.6:
        pair = [rng.choice(shared).capitalize(), word(rng).capitalize()]
        rng.shuffle(pair)
        return rng.choice((" ", " ", " ", "-", " and ", " of ")).join(pair)
    draw = rng.random()
    if draw < 0.30:
        return word(rng).capitalize()
    if draw < 0.45:
        return word(rng)
    if draw < 0.70:
        return " ".join(part.capitalize() for part in words(rng, 2, 3))
    if draw < 0.74:
        return " ".join([word(rng).capitalize(), *words(rng, 1, 2)])
    if draw < 0.77:
        return f"{word(rng).capitalize()} {rng.choice(('and', 'of', 'or', 'the', 'de', 'in'))} {word(rng).capitalize()}"
    if draw < 0.83:
        return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(1, 4))).upper()
    if draw < 0.87:
        return f"{word(rng)[:4].upper()}{rng.choice(('-', '', '_', ' '))}{rng.randint(1, 999)}"
    if draw < 0.90:
        low = rng.randint(0, 90)
        return f"{low}-{low + rng.randint(1, 20)}"
    if draw < 0.92:
        return f"{word(rng).capitalize()}, {word(rng).capitalize()}{rng.choice(('', '.'))}"
    if draw < 0.94:
        return f"{word(rng).capitalize()} & {word(rng).capitalize()}"
    if draw < 0.96:
        return f"{word(rng).capitalize()} ({word(rng)})"
    if draw < 0.98:
        plain = word(rng).capitalize()
        place = rng.randrange(len(plain) + 1)
        return plain[:place] + rng.choice(_RARE) + plain[place:]
    return f"{rng.choice('DOL')}'{word(rng).capitalize()}"


def phrase(rng: Random) -> str:
    """A column in words, such as "bill length in mm"."""
    text = " ".join(words(rng, 1, 4))
    draw = rng.random()
    if draw < 0.25:
        return f"{text} in {_syllables(rng)[:4]}"
    if draw < 0.35:
        return f"{text} per {word(rng)}"
    if draw < 0.45:
        return f"{word(rng)} of {text}"
    return text


def distinct(rng: Random, make: object, count: int, taken: set[str] | None = None) -> list[str]:
    """So many texts that differ in more than their case."""
    assert callable(make)
    seen = set() if taken is None else taken
    found: list[str] = []
    while len(found) < count:
        text = make(rng).strip()
        if text and text.casefold() not in seen:
            seen.add(text.casefold())
            found.append(text)
    return found


def path(rng: Random) -> str:
    """Where a table lies below `data/`: a file, perhaps in folders of other names."""
    folders = [_styled(words(rng, 1, 2), "snake") for _ in range(rng.choice((0, 0, 1, 1, 1, 2)))]
    style = rng.choice(("snake", "snake", "snake", "camel", "Snake", "plain", "UPPER"))
    name = _styled(words(rng, 1, rng.choice((1, 2, 2, 3))), style)
    if rng.random() < 0.1:
        name = name.replace("_", "-") + rng.choice(("", f"-{rng.randint(1, 2030)}", f"_v{rng.randint(1, 9)}"))
    return "/".join([*folders, f"{name}.csv"])
