"""Reading one literal out of an answer's text: a number, a date, a list, ...

Each reader takes the whole text or refuses it (`NotThisType` says why). Numbers are read in English notation:
a point before the decimals, commas, spaces or underscores between groups of three digits. Everything is
`Decimal`: 0.1 + 0.2 and friends must not decide a reward.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache


class NotThisType(ValueError):
    """The text is not one value of the wanted type; the message says what is wrong with it."""


CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "₹": "INR"}
"""Currency signs that may stand before or after any number, and the codes that they mean."""

CURRENCY_CODES = frozenset({*CURRENCIES.values(), "CHF", "CNY", "AUD", "CAD", "BRL", "SEK", "NOK", "DKK", "PLN"})

_PER_CENT = ("%", "percent", "per cent")
_WRAPPERS = (("**", "**"), ("`", "`"), ('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"))
_TYPEWRITTEN = str.maketrans({"\u2212": "-", "\u00a0": " ", "\u2009": " ", "\u202f": " "})
_REMEMBERED = 2048  # readings kept by each cache: an unordered list reads every item many times
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?:[ _][0-9]{3})+|[0-9]+")
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?P<whole>{_GROUPED.pattern})?(?P<fraction>\.[0-9]*)?"
    r"(?:e(?P<exponent>[+-]?[0-9]{1,3})|\s?[x×*]\s?10\^(?P<power>[+-]?[0-9]{1,3}))?",
    re.IGNORECASE,
)
_TIME_FORMATS = ("%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M%p", "%I %p", "%I%p")
_DAY_FORMATS = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y%m%d",
    "%d %B %Y",
    "%d %b %Y",
    "%B %d, %Y",
    "%b %d, %Y",
    "%B %d %Y",
)
_MONTH_FORMATS = ("%Y-%m", "%Y/%m", "%B %Y", "%b %Y", "%B, %Y", "%b, %Y")


def exact(value: float) -> Decimal:
    """The shortest decimal that reads back as this float: 0.1, not 0.1000000000000000055."""
    return Decimal(repr(float(value)))


def shown(text: str, limit: int = 80) -> str:
    """The text quoted for a message, cut to `limit` characters."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text)} characters)"


def strip_wrapping(text: str) -> str:
    """Without surrounding white space, a closing full stop, matching quotes, backticks or bold marks."""
    before = None
    while text != before:
        before = text
        text = text.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        for opening, closing in _WRAPPERS:
            if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
                inner = text[len(opening) : -len(closing)]
                if opening not in inner and closing not in inner:
                    text = inner
    return text


@lru_cache(_REMEMBERED)
def fold(text: str) -> str:
    """The text as names are compared: unwrapped, Unicode-normal, case-folded, one space between words."""
    return " ".join(unicodedata.normalize("NFKC", strip_wrapping(text)).casefold().split())


def is_unit(text: str) -> bool:
    """Whether this can be told apart from digits (were `5` a unit, 55 would read as 5)."""
    return text == text.strip() and bool(text.strip("0123456789.,+-_ eE"))


@lru_cache(_REMEMBERED)
def read_number(text: str, unit: str | None = None) -> Decimal:
    """One number, with a currency or the stated unit before or after it.

    A per cent sign divides by 100, unless `unit` is "%": then the number counts per cents with or without it.

    Raises:
        NotThisType: not one number, or another unit than the stated one.
    """
    body, units = _strip_units(strip_wrapping(text).translate(_TYPEWRITTEN), unit)
    wanted = None if unit is None else _unit_key(unit)
    if wanted is not None and units - {wanted}:
        raise NotThisType(f"the unit is {unit}")
    found = _NUMBER.fullmatch(body)
    if found is None or not (found["whole"] or (found["fraction"] or ".") != "."):
        raise NotThisType("not exactly one number")
    whole = re.sub(r"[ _,]", "", found["whole"] or "0")
    exponent = int(found["exponent"] or found["power"] or 0)
    if "%" in units and wanted != "%":
        exponent -= 2
    # Made from text, so that no digit is rounded away: arithmetic would keep the first 28.
    return Decimal(f"{found['sign']}{whole}{found['fraction'] or ''}e{exponent}")


def _strip_units(body: str, unit: str | None) -> tuple[str, set[str]]:
    """The text without the units at its ends, and which those were. A sign may stand before a currency."""
    units: set[str] = set()
    sign = ""
    if re.match(r"[+-][^0-9.\s]", body):
        sign, body = body[0], body[1:]
    for name in _unit_names(unit):
        key = _unit_key(name)
        if key != "%" and body[: len(name)].casefold() == name.casefold():
            body, units = body[len(name) :].lstrip(), units | {key}
        elif body[-len(name) :].casefold() == name.casefold():
            body, units = body[: -len(name)].rstrip(), units | {key}
    if len(units) > 1:
        raise NotThisType(f"more than one unit: {sorted(units)}")
    return sign + body, units


@lru_cache(_REMEMBERED)
def _unit_names(unit: str | None) -> list[str]:
    """Longest first, so that `EUR` or `k€` is not read as an `R` or `€` with something before it."""
    names = {*CURRENCIES, *CURRENCY_CODES, *_PER_CENT, *([] if unit is None else [unit])}
    return sorted(names, key=lambda name: (-len(name), name))


def _unit_key(name: str) -> str:
    if name.casefold() in _PER_CENT:
        return "%"
    return CURRENCIES.get(name, name.upper() if name.upper() in CURRENCY_CODES else name.casefold())


def read_boolean(text: str) -> bool:
    """Yes, no, true or false.

    Raises:
        NotThisType: any other text.
    """
    word = fold(text)
    if word not in ("yes", "true", "no", "false"):
        raise NotThisType("neither yes nor no")
    return word in ("yes", "true")


@lru_cache(_REMEMBERED)
def read_moment(text: str) -> tuple[str, str]:
    """A date, month, year, time of day or date with time, as (precision, ISO text).

    Numeric day-month orders ("05/01/2023") are refused: they mean different days to different people. Moments
    with a time zone are given in UTC; those without one stay as they are, and equal none with one.

    Raises:
        NotThisType: not one moment in ISO 8601 or with the month's name.
    """
    body = re.sub(r"(?<=[0-9])(st|nd|rd|th)\b", "", strip_wrapping(text), flags=re.IGNORECASE)
    if re.fullmatch(r"[0-9]{4}", body):
        return "year", body
    for parse, precision in ((_read_month, "month"), (_read_day, "day"), (_read_time, "time")):
        value = parse(body)
        if value is not None:
            return precision, value
    try:
        stamp = datetime.fromisoformat(body.replace(" UTC", "+00:00"))
        stamp = stamp.astimezone(UTC) if stamp.tzinfo else stamp
    except (ValueError, OverflowError):
        raise NotThisType("not one date or time in ISO 8601 or with the month's name") from None
    return "moment", stamp.isoformat()


def is_moment(text: str, expected: str) -> bool:
    """Whether both are the same moment. For a day its midnight will do, as pandas prints it.

    Raises:
        NotThisType: one of them is not one moment.
    """
    precision, value = read_moment(expected)
    return read_moment(text) in {(precision, value), ("moment", f"{value}T00:00:00")}


def _read_month(body: str) -> str | None:
    month = _first_format(body, _MONTH_FORMATS)
    return month.strftime("%Y-%m") if month else None


def _read_day(body: str) -> str | None:
    if body.isdigit() and len(body) != 8:
        return None  # "2023111" could be two days
    day = _first_format(body, _DAY_FORMATS)
    return date(day.year, day.month, day.day).isoformat() if day else None


def _read_time(body: str) -> str | None:
    moment = _first_format(body, _TIME_FORMATS)
    return time(moment.hour, moment.minute, moment.second).isoformat() if moment else None


def _first_format(body: str, formats: tuple[str, ...]) -> datetime | None:
    for pattern in formats:
        try:
            return datetime.strptime(body, pattern)
        except ValueError:
            continue
    return None


def split_label(text: str) -> tuple[str, str]:
    """The two sides of `label:number`.

    Raises:
        NotThisType: no single colon between two texts.
    """
    label, colon, number = strip_wrapping(text).rpartition(":")
    if not (colon and label.strip() and number.strip()):
        raise NotThisType("not label:number")
    return label, number


def split_list(text: str, wanted: int) -> list[str]:
    """The items of a list: JSON, or separated by semicolons, line ends or commas.

    A comma may also stand inside a number ("1,000, 2,000"), so a split at ", " comes before one at ",", and
    the first that gives `wanted` items holds.

    Raises:
        NotThisType: an empty text. No items is "[]".
    """
    body = strip_wrapping(text)
    if not body:
        raise NotThisType("an empty text")
    if body.startswith("[") and body.endswith("]"):
        try:  # numbers stay as they are written
            items = json.loads(body, parse_int=str, parse_float=str, parse_constant=str)
            return [item if isinstance(item, str) else json.dumps(item) for item in items]
        except (ValueError, RecursionError):
            body = body[1:-1].strip()
    splits = [_split(body, mark) for mark in (";", "\n", ", ", ",") if mark in body] or [[body]]
    return next((items for items in splits if len(items) == wanted), splits[0])


def _split(body: str, mark: str) -> list[str]:
    if mark == "\n":
        return [line.strip().removesuffix(",") for line in body.split("\n")]
    if len(mark) == 1:  # csv knows quotes: "Smith, John", "Doe, Jane"
        quote = "'" if body.startswith("'") else '"'
        try:
            rows = csv.reader([body], delimiter=mark, quotechar=quote, skipinitialspace=True)
            return [item.strip() for item in next(rows)]
        except (csv.Error, StopIteration):
            pass
    return [item.strip() for item in body.split(mark)]


def read_named(text: str) -> dict[str, str]:
    """The values of `@name[value]` pairs, with nothing but separators between them.

    Raises:
        NotThisType: other text around the pairs, none at all, or a name that comes twice.
    """
    body = strip_wrapping(text)
    pairs = re.findall(r"@([A-Za-z_][\w ]*)\[([^\[\]]*|\[[^\[\]]*\])\]", body)
    rest = re.sub(r"@([A-Za-z_][\w ]*)\[([^\[\]]*|\[[^\[\]]*\])\]", "", body)
    if not pairs or rest.strip(" ,;\n\t"):
        raise NotThisType("not @name[value] and nothing else")
    names = [name.strip() for name, _ in pairs]
    if len(set(names)) != len(names):
        raise NotThisType("a name comes twice")
    return {name: value.strip() for (_, value), name in zip(pairs, names, strict=True)}
