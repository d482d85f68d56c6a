"""Reading one literal out of an answer's text: a number, a date, a list, ...

Each reader takes the whole text or refuses it (`NotThisType` says why). Numbers are read in English notation: a
point before the decimals, commas, spaces or underscores between groups of three digits. Everything is
`Decimal`: 0.1 + 0.2 and friends must not decide a reward.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from datetime import date, datetime, time
from decimal import Decimal


class NotThisType(ValueError):
    """The text is not one value of the wanted type; the message says what is wrong with it."""


CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "₹": "INR"}
"""Currency signs that may stand before or after any number, and the codes that they mean."""

CURRENCY_CODES = frozenset({*CURRENCIES.values(), "CHF", "CNY", "AUD", "CAD", "BRL", "SEK", "NOK", "DKK", "PLN"})

_WRAPPERS = ("**", "`", '"', "'", "“”", "‘’")
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?:[ _][0-9]{3})+|[0-9]+")
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?P<whole>{_GROUPED.pattern})?(?P<fraction>\.[0-9]*)?"
    r"(?:e(?P<exponent>[+-]?[0-9]{1,3})|\s?[x×*]\s?10\^(?P<power>[+-]?[0-9]{1,3}))?",
    re.IGNORECASE,
)
_TIME_FORMATS = ("%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M%p", "%I %p", "%I%p")
_DAY_FORMATS = ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d", "%d %B %Y", "%d %b %Y", "%B %d, %Y", "%b %d, %Y", "%B %d %Y")
_MONTH_FORMATS = ("%Y-%m", "%Y/%m", "%B %Y", "%b %Y", "%B, %Y", "%b, %Y")


def exact(value: float) -> Decimal:
    """The shortest decimal that reads back as this float: 0.1, not 0.1000000000000000055."""
    return Decimal(repr(float(value)))


def shown(text: str, limit: int = 80) -> str:
    """The text quoted for a message, cut to `limit` characters."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text)} characters)"


def strip_wrapping(text: str) -> str:
    """Without surrounding white space, matching quotes, backticks or bold marks."""
    text = text.strip()
    for wrapper in _WRAPPERS:
        opening, closing = (wrapper[0], wrapper[1]) if wrapper in ("“”", "‘’") else (wrapper, wrapper)
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            if opening not in inner and closing not in inner:
                return strip_wrapping(inner)
    return text


def fold(text: str) -> str:
    """The text as names are compared: Unicode-normal, case-folded, one space between words, no closing stop."""
    folded = " ".join(unicodedata.normalize("NFKC", strip_wrapping(text)).casefold().split())
    return folded[:-1].rstrip() if folded.endswith(".") and not folded.endswith("..") else folded


def read_number(text: str, unit: str | None = None) -> Decimal:
    """One number, with a currency or the stated unit before or after it.

    A per cent sign divides by 100, unless `unit` is "%": then the number counts per cents with or without it.

    Raises:
        NotThisType: not one number, or another unit than the stated one.
    """
    body = strip_wrapping(text).replace("\u2212", "-").replace("\u00a0", " ").replace("\u202f", " ")
    body, units = _strip_units(body, unit)
    if unit is not None and units - {_unit_key(unit)}:
        raise NotThisType(f"the unit is {unit}")
    found = _NUMBER.fullmatch(body)
    if found is None or not (found["whole"] or (found["fraction"] or ".") != "."):
        raise NotThisType("not exactly one number")
    whole = re.sub(r"[ _,]", "", found["whole"] or "0")
    exponent = int(found["exponent"] or found["power"] or 0)
    value = Decimal(f"{found['sign']}{whole}{found['fraction'] or ''}").scaleb(exponent)
    return value / 100 if "%" in units and unit != "%" else value


def _strip_units(body: str, unit: str | None) -> tuple[str, set[str]]:
    """The text without the units at its ends, and which those were. A sign may stand before a currency."""
    units: set[str] = set()
    sign = ""
    if body[:1] in "+-" and body[1:2] in CURRENCIES:
        sign, body = body[0], body[1:]
    for name in sorted({*CURRENCIES, *CURRENCY_CODES, "%", "percent", "per cent", *([unit] if unit else [])}, key=len)[::-1]:
        key = _unit_key(name)
        if key != "%" and body.casefold().startswith(name.casefold()):
            body, units = body[len(name) :].lstrip(), units | {key}
        elif body.casefold().endswith(name.casefold()):
            body, units = body[: -len(name)].rstrip(), units | {key}
    if len(units) > 1:
        raise NotThisType(f"more than one unit: {sorted(units)}")
    return sign + body, units


def _unit_key(name: str) -> str:
    if name.casefold() in ("percent", "per cent"):
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


def read_moment(text: str) -> tuple[str, str]:
    """A date, month, year, time of day or date with time, as (precision, ISO text).

    Numeric day-month orders ("05/01/2023") are refused: they mean different days to different people.

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
    except ValueError:
        raise NotThisType("not one date or time in ISO 8601 or with the month's name") from None
    return "moment", stamp.isoformat()


def _read_month(body: str) -> str | None:
    month = _first_format(body, _MONTH_FORMATS)
    return month.strftime("%Y-%m") if month else None


def _read_day(body: str) -> str | None:
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

    A comma may also stand inside a number ("1,000, 2,000"), so a split at ", " comes before one at ",", and the
    first that gives `wanted` items holds.
    """
    body = strip_wrapping(text)
    if body.startswith("[") and body.endswith("]"):
        try:
            items = json.loads(body)
            return [item if isinstance(item, str) else json.dumps(item) for item in items]
        except ValueError:
            body = body[1:-1].strip()
    if not body:
        return []
    splits = [_split(body, mark) for mark in (";", "\n", ", ", ",") if mark in body] or [[body]]
    return next((items for items in splits if len(items) == wanted), splits[0])


def _split(body: str, mark: str) -> list[str]:
    if len(mark) == 1 and mark != "\n":  # csv knows quotes: "Smith, John", "Doe, Jane"
        try:
            return [item.strip() for item in next(csv.reader([body], delimiter=mark, skipinitialspace=True))]
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
