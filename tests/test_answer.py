"""The strict verifier: what each type of answer accepts and refuses, and what no input may do to it."""

import string
import time
from decimal import Decimal, localcontext

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jupyter_env import literals
from jupyter_env.answer import (
    MAX_ANSWER_CHARS,
    Answer,
    Boolean,
    Choice,
    Date,
    Integer,
    Labelled,
    ListOf,
    Named,
    NotApplicable,
    Number,
    Text,
    describe,
    from_data,
    reference_text,
    verify,
)


def integers(*values: int, ordered: bool = True) -> ListOf:
    return ListOf(items=tuple(Integer(value=value) for value in values), ordered=ordered)


def texts(*values: str, ordered: bool = True) -> ListOf:
    return ListOf(items=tuple(Text(value=value) for value in values), ordered=ordered)


MONEY = Number(value=1234.5, decimals=2)
EUROS = Number(value=12.5, decimals=2, unit="EUR")
SHARE = Number(value=0.45, decimals=2)
PER_CENTS = Number(value=45, decimals=0, unit="%")
NEW_YORK = Text(value="New York City", aliases=("NYC",))
DAY = Date(value="2023-01-05")
SCHEME = Choice(value="B. BE", options=("A. NL", "B. BE", "C. ES"))
FEE = Labelled(label="E", number=Number(value=346.49, decimals=2))
STATS = Named(values={"mean": Number(value=34.65, decimals=2), "normal": Boolean(value=False)})

ACCEPTED: dict[str, tuple[Answer, list[str]]] = {
    "number": (
        MONEY,
        ["1234.5", "1,234.50", "1 234.5", "1_234.50", "+1234.5", "1.2345e3", "1.2345E+03", "12345e-1",
         "1.2345 x 10^3",
         "1.2345×10^3", "$1,234.50", "€ 1,234.50", "1,234.50€", "1234.50 EUR", "USD 1234.5", "**1,234.50**",
         "`1234.5`", "'1234.5'", "“1234.5”", " \n1234.5\t", "1234.5.", "**1234.5**.", "1\u202f234.5",
         "1\u2009234.5", "1234.504", "1234.495", "1234.505", "01234.5", "1234." + "5".ljust(500, "0")],
    ),
    "negative": (
        Number(value=-5),
        ["-5", "-5.0", "−5", "-€5", "€-5", "€ -5", "-5 €", "-$ 5", "-EUR 5", "EUR -5", "-5.", "-05",
         "-50e-1"],
    ),
    "number with a unit": (EUROS, ["12.5", "12.50 EUR", "12.50 eur", "€12.50", "12.50€", "EUR 12.5",
         "12.50 EUR."]),
    "physical unit": (Number(value=12.5, unit="kg CO2"), ["12.5", "12.5 kg CO2", "12.5kg co2"]),
    "share": (SHARE, ["0.45", ".45", "45%", "45 %", "45 percent", "45 per cent", "0.4512"]),
    "per cents": (PER_CENTS, ["45", "45%", "45 %", "45 percent", "45.3%"]),
    "per cents, by name": (Number(value=45, unit="percent"), ["45", "45%", "45 percent"]),
    "relative tolerance": (Number(value=200, rel_tol=0.01), ["200", "198", "202", "2.01e2"]),
    "exact zero": (Number(value=0), ["0", "-0", "0.000", "0%", "0e9"]),
    "tiny": (Number(value=3e-7), ["3e-7", "0.0000003", "0.3 x 10^-6"]),
    "integer": (Integer(value=3), ["3", "3.0", "3.", "+3", "03", "3e0", "30e-1", "300%", "$3", "**3**"]),
    "big integer": (Integer(value=10**30 + 1), ["1" + "0" * 29 + "1",
         "1,000,000,000,000,000,000,000,000,000,001"]),
    "integer with a unit": (Integer(value=12, unit="days"), ["12", "12 days", "12 Days"]),
    "boolean": (Boolean(value=True), ["yes", "Yes.", "TRUE", "true", "`True`", " yes ", '"yes"']),
    "choice": (SCHEME, ["B. BE", "b. be", "'B. BE'", "B.  BE."]),
    "text": (
        NEW_YORK,
        ["New York City", "new york  city", "NEW YORK CITY.", "nyc", '"NYC"', '"NYC".', "**NYC**", "ＮＹＣ",
         "‘NYC’"],
    ),
    "accents": (Text(value="Café"), ["Cafe\u0301", "CAFÉ"]),
    "emoji": (Text(value="👍🏽 ok"), ["👍🏽 OK"]),
    "day": (
        DAY,
        ["2023-01-05", "2023/01/05", "2023-1-5", "20230105", "5 January 2023", "January 5, 2023",
         "5th Jan 2023",
         "2023-01-05 00:00:00", "2023-01-05T00:00", "2023-01-05T00:00:00.000000000", "2023-01-05.",
         "'2023-01-05'"],
    ),
    "month": (Date(value="2023-01"), ["2023-01", "2023/1", "January 2023", "jan 2023"]),
    "year": (Date(value="2023"), ["2023"]),
    "time": (Date(value="14:30"), ["14:30", "14:30:00", "2:30 PM", "02:30pm"]),
    "moment": (Date(value="2023-01-05T14:30"), ["2023-01-05 14:30", "2023-01-05T14:30:00",
         "2023-01-05 14:30:00.000"]),
    "moment with a zone": (
        Date(value="2023-01-05T14:30Z"),
        ["2023-01-05 14:30 UTC", "2023-01-05T14:30+00:00", "2023-01-05T15:30+01:00"],
    ),
    "labelled": (FEE, ["E:346.49", "e: 346.49", "E : €346.49", "E:346.490"]),
    "list": (
        integers(1000, 2000),
        ["1000, 2000", "1,000, 2,000", "1000,2000", "[1000, 2000]", "['1000', '2000']", '["1,000", "2,000"]',
         "1,000; 2,000", "1000\n2000", "1000,\n2000", "`[1000, 2000]`", "[1000.0, 2e3]", "$1,000, $2,000"],
    ),
    "list of names": (
        texts("Smith, John", "Doe, Jane"),
        ['"Smith, John", "Doe, Jane"', "'Smith, John', 'Doe, Jane'", "['Smith, John', 'Doe, Jane']",
         '["Smith, John", "Doe, Jane"]', "Smith, John; Doe, Jane", "Smith, John\nDoe, Jane"],
    ),
    "letters": (texts("a", "b"), ["a, b", "[a, b]", "['a', 'b']", '"a","b"', "A; B", "a,b."]),
    "set": (integers(1, 2, 2, ordered=False), ["1, 2, 2", "2, 1, 2", "[2,2,1]"]),
    "one item": (integers(7), ["7", "[7]", '["7"]']),
    "no items": (integers(), ["[]", "[ ]"]),
    "named": (
        STATS,
        ["@mean[34.65], @normal[no]", "@normal[False]\n@mean[34.650]", "@mean[ 34.65 ];@normal[ no ].",
         "@mean[34.65]@normal[no]"],
    ),
    "named list": (Named(values={"ids": integers(1, 2)}), ["@ids[1, 2]", "@ids[[1, 2]]"]),
    "not applicable": (NotApplicable(), ["Not Applicable", "not applicable.", "N/A", "'Not Applicable'"]),
}  # fmt: skip

REFUSED: dict[str, tuple[Answer, list[str]]] = {
    "number": (
        MONEY,
        ["", " ", ".", "-", "e3", "1234.51", "-1234.5", "1 234,5", "1.234,50", "1234,5", "12,34.5",
         "1,2345", "1234.5..",
         "1234.5 or 1234.6", "1234.5, 1234.6", "1234-1235", "~1234.5", "1234.5 ± 1", ">1234",
         "the answer is 1234.5",
         "1234.5 apples", "1234.5 kg", "1.2345k", "(1234.5)", "= 1234.5", "[1234.5]", "@x[1234.5]", "0x4d2",
         "1234.5%",
         "1234.5 EUR USD", "$1234.5 €", "inf", "nan", "1e9999", "1234.5\x00", "1234.5\u200b", "١٢٣٤.٥",
         "１２３４.５", "1234.5²", "1234½", "1234.5 👍", "1234.5\n1234.6", "None", "one thousand"],
    ),
    "negative": (Number(value=-5), ["5", "--5", "+-5", "-+5", "- 5", "(5)", "-€-5", "5-", "–5"]),
    "number with a unit": (EUROS, ["$12.50", "12.50 USD", "12.5%", "1250%", "12.5 kg", "EUR",
         "12.50 EUR or so"]),
    "physical unit": (Number(value=12.5, unit="kg"), ["12.5 g", "12.5 kgs", "$12.5", "12.5 kg kg", "kg"]),
    "share": (SHARE, ["45", "0.45%", "4500%", "45%%", "0.456", "%45"]),
    "per cents": (PER_CENTS, ["0.45", "0.45%", "45 €", "46%", "44.4"]),
    "relative tolerance": (Number(value=200, rel_tol=0.01), ["197.9", "202.1", "-200"]),
    "integer": (
        Integer(value=3),
        ["2.9999999999", "3.0000000001", "3." + "0" * 40 + "1", "3 or 4", "3,", "3, 4", "three", "III",
         "#3", "3!", "³", "③",
         "3/1", "2+1", "[3]", "0b11", "3 3", "3 apples", "-3", "30%", "3\x00", "\x003", "1_0"],
    ),
    "big integer": (Integer(value=10**30 + 1), ["1" + "0" * 30, "1e30", "1" + "0" * 29 + "2"]),
    "boolean": (Boolean(value=True), ["", "no", "y", "1", "t", "yes no", "yes and no", "yes, it is",
         "not no", "yes/no"]),
    "choice": (SCHEME, ["", "B", "BE", "A. NL", "B. BE, A. NL", "B. BE or C. ES", "D. FR", "B",
         "B. BE\nC. ES"]),
    "text": (
        NEW_YORK,
        ["", ".", "New York", "York", "City", "New York City, NYC", "NYC or Boston", "NYC|Boston",
         "The answer is NYC",
         "York New City", "New_York_City", "NewYorkCity", "New York City!!", "[NYC]", "N*", ".*", "NYC\x00",
         "NYC 👍"],
    ),
    "accents": (Text(value="Café"), ["Cafe"]),
    "day": (
        DAY,
        ["", "2023", "2023-01", "2023-01-06", "05/01/2023", "01/05/2023", "2023-01-05 14:30",
         "2023-01-05T00:00Z",
         "5 January", "2023-01-05 or 2023-01-06", "2023-01-05/2023-01-06", "2023-13-05", "2023-02-30",
         "1672876800", "2023115", "202315", "٢٠٢٣-٠١-٠٥", "2023-01-05\x00"],
    ),
    "ambiguous digits": (Date(value="2023-01-15"), ["2023115"]),
    "month": (Date(value="2023-01"), ["2023", "January", "2023-01-01", "01/2023", "2023-02"]),
    "year": (Date(value="2023"), ["23", "2023-01", "2023.0", "2022", "2023 or 2022"]),
    "time": (Date(value="14:30"), ["2:30", "2:30 AM", "14", "14:31", "25:30", "14.30"]),
    "moment": (Date(value="2023-01-05T14:30"), ["2023-01-05", "14:30", "2023-01-05T14:30Z",
         "2023-01-05T14:31"]),
    "midnight": (Date(value="2023-01-05T00:00"), ["2023-01-05"]),
    "labelled": (FEE, ["346.49", "E", "E:", ":346.49", "F:346.49", "E:346.48", "E:F:346.49",
         "E:346.49, F:346.49", "E=346.49"]),
    "list": (
        integers(1000, 2000),
        ["", "1000", "2000, 1000", "1000 2000", "1000, 2000, 2000", "1000, 2000,", "1000 and 2000",
         "[[1000, 2000]]",
         "[1000], [2000]", "(1000, 2000)", "1000, 2000 or 3000", "1000, 2000\n1000, 3000", '{"a": 1000}',
         "[1000, null]"],
    ),
    "three": (texts("A", "B", "C"), ["A, B and C", "A, B, and C", "A B C", "A, B", "A, B, C, D", "A, B, D"]),
    "set": (integers(1, 2, 2, ordered=False), ["1, 2", "1, 1, 2", "1, 2, 2, 2", "1, 2, 3", "1, 2, 2, 3"]),
    "no items": (integers(), ["", " ", "none", "[[]]", '[""]', "0"]),
    "named": (
        STATS,
        ["", "34.65, no", "@mean[34.65]", "@mean[34.65], @normal[no], @x[1]",
         "@mean[34.65] @mean[34.65] @normal[no]",
         "@mean[34.65] @mean[1] @normal[no]", "mean[34.65], normal[no]", "@mean[34.65] and @normal[no]",
         "@mean[34.65 or 1], @normal[no]", "@mean[34.65], @normal[yes]", "@mean[[34.65]], @normal[no]",
         "@Mean[34.65], @normal[no]",
         "@mean[34.65, @normal[no]", "@mean[], @normal[]", "The answer: @mean[34.65], @normal[no]"],
    ),
    "not applicable": (NotApplicable(), ["", "not", "NA", "none", "yes", "Not Applicable, 5",
         "It is not applicable"]),
}  # fmt: skip


def pairs(table: dict[str, tuple[Answer, list[str]]]) -> list:
    return [
        pytest.param(answer, text, id=f"{name}: {text[:30]!a}")
        for name, (answer, group) in table.items()
        for text in group
    ]


@pytest.mark.parametrize(("answer", "text"), pairs(ACCEPTED))
def test_accepted(answer, text):
    verdict = verify(text, answer)
    assert verdict.correct, verdict.reason
    assert verdict.score == 1.0


@pytest.mark.parametrize(("answer", "text"), pairs(REFUSED))
def test_refused(answer, text):
    verdict = verify(text, answer)
    assert not verdict.correct, verdict.reason
    assert verdict.score == 0.0


EVERY_TYPE = [answer for answer, _ in ACCEPTED.values()]


@pytest.mark.parametrize("candidate", [None, 5, 12.5, True, b"5", ["5"], {"a": 1}])
def test_only_text_is_an_answer(candidate):
    for answer in EVERY_TYPE:
        verdict = verify(candidate, answer)
        assert not verdict.correct
        assert type(candidate).__name__ in verdict.reason


HOSTILE = {
    "10 MB": "5" * 10_000_000,
    "nested brackets": "[" * 4_999 + "]" * 4_999,
    "opening brackets": "[" * 9_999,
    "nested names": "@a[" * 3_000,
    "names": "@" + "a" * 9_000,
    "quotes": "\"'`" * 3_000,
    "bold": "**" * 5_000,
    "stops": " ." * 5_000,
    "commas": "," * 10_000,
    "semicolons": ";" * 10_000,
    "spaces": "1" + " " * 9_000 + "1",
    "digits": "9" * 10_000,
    "groups": "1" + ",000" * 2_400 + ",00",
    "spaced groups": "1" + " 000" * 2_400 + "x",
    "exponents": "1e" * 5_000,
    "largest exponent": "9e999",
    "signs": "-" * 10_000,
    "currencies": "$€£" * 3_000,
    "per cents": "5" + "%" * 9_000,
    "colons": ":" * 10_000,
    "open quote": '"a, b',
    "NUL": "\x00" * 1_000,
    "control": "".join(map(chr, range(32))) * 100,
    "surrogate": "\ud800, \udfff",
    "emoji": "👩‍👩‍👧‍👦" * 1_000,
    "ligature": "\ufdfa" * 10_000,
    "combining": "e" + "\u0301" * 9_000,
    "right to left": "\u202e5",
    "byte order mark": "\ufeff5",
    "JSON depth": '[{"a":' * 1_500 + "1" + "}]" * 1_500,
    "JSON numbers": "[" + "9" * 9_000 + "]",
    "JSON odd": "[NaN, Infinity, 1e999]",
    "year 1": "0001-01-01T00:00+14:00",
    "year 9999": "9999-12-31T23:59-14:00",
    "dates": "2023-01-05T" * 900,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_refused_quickly_and_without_exception(text):
    start = time.process_time()
    for answer in EVERY_TYPE:
        assert not verify(text, answer).correct
    assert time.process_time() - start < 5


def test_long_text_is_refused_unread():
    assert verify("5".rjust(MAX_ANSWER_CHARS), Integer(value=5)).correct
    verdict = verify("5".rjust(MAX_ANSWER_CHARS + 1), Integer(value=5))
    assert not verdict.correct
    assert str(MAX_ANSWER_CHARS) in verdict.reason


def test_unordered_lists_stay_quick():
    answer = integers(*range(500), ordered=False)
    start = time.process_time()
    assert verify(", ".join(map(str, reversed(range(500)))), answer).correct
    assert not verify(", ".join(map(str, reversed(range(1, 501)))), answer).correct
    assert time.process_time() - start < 5


def test_unordered_items_are_paired_whatever_the_order():
    # 1.4 fits both items and comes first: it has to leave 1 to the text that fits nothing else.
    answer = ListOf(items=(Number(value=1, decimals=0), Number(value=1.8, decimals=0)), ordered=False)
    assert verify("1.4, 0.6", answer).correct
    assert verify("0.6, 1.4", answer).correct
    assert not verify("0.6, 0.7", answer).correct


def test_a_long_chain_of_overlapping_items_is_no_deep_recursion():
    count = 1_050
    answer = ListOf(items=tuple(Number(value=i, decimals=0) for i in range(count)), ordered=False)
    # Each half lies between two items and takes the lower one, until 0 comes and pushes all of them up.
    halves = [f"{i + 0.5}" for i in range(count - 1)]
    assert verify(",".join([*halves, "0"]), answer).correct
    assert not verify(",".join([*halves, "-1"]), answer).correct


def test_arithmetic_settings_of_the_host_do_not_matter():
    with localcontext() as context:
        context.prec = 3
        assert verify("123456", Integer(value=123456)).correct
        assert not verify("123457", Integer(value=123456)).correct


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Number(value=12.5, decimals=2, unit="EUR"), "12.50 EUR within 0.005"),
        (Number(value=45, unit="%", rel_tol=1e-6), "45% within 0.0001%"),
        (Integer(value=3, unit="days"), "3 days"),
        (Boolean(value=False), "no"),
        (NEW_YORK, "'New York City' or 'NYC'"),
        (FEE, "E:346.49 within 0.005"),
        (integers(1, 2, ordered=False), "[1, 2] in any order"),
        (STATS, "@mean[34.65 within 0.005], @normal[no]"),
        (NotApplicable(), "'Not Applicable'"),
    ],
)
def test_description(answer, expected):
    assert describe(answer) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "float", "value": 1}, "type"),
        ({"value": 1}, "type"),
        ({"type": "number"}, "value"),
        ({"type": "number", "value": "12"}, "float"),
        ({"type": "number", "value": 1, "decimal": 2}, "decimal"),
        ({"type": "number", "value": 1, "decimals": -1}, "decimals"),
        ({"type": "number", "value": 1, "decimals": 16}, "decimals"),
        ({"type": "number", "value": 1, "rel_tol": 1}, "rel_tol"),
        ({"type": "number", "value": 1, "rel_tol": -0.1}, "rel_tol"),
        ({"type": "number", "value": 1, "rel_tol": 0.1, "decimals": 2}, "not both"),
        ({"type": "number", "value": float("nan")}, "finite"),
        ({"type": "number", "value": float("inf")}, "finite"),
        ({"type": "number", "value": 5, "unit": "5"}, "unit"),
        ({"type": "number", "value": 5, "unit": ""}, "unit"),
        ({"type": "number", "value": 5, "unit": "e5"}, "unit"),
        ({"type": "integer", "value": 5, "unit": " kg"}, "unit"),
        ({"type": "integer", "value": 5.5}, "int"),
        ({"type": "boolean", "value": "yes"}, "bool"),
        ({"type": "choice", "value": "D", "options": ["A", "B"]}, "among"),
        ({"type": "choice", "value": "A.", "options": ["a", "A."]}, "options"),
        ({"type": "choice", "value": "", "options": ["", "B"]}, "options"),
        ({"type": "text", "value": " "}, "character"),
        ({"type": "text", "value": "NYC", "aliases": ["."]}, "character"),
        ({"type": "text", "value": "x" * (MAX_ANSWER_CHARS + 1)}, "no text"),
        ({"type": "date", "value": "05/01/2023"}, "ISO"),
        ({"type": "labelled", "label": "", "number": {"type": "number", "value": 1}}, "label"),
        ({"type": "labelled", "label": "E", "number": {"type": "integer", "value": 1}}, "number"),
        ({"type": "named", "values": {}}, "at least one"),
        ({"type": "named", "values": {"mean-fare": {"type": "integer", "value": 1}}}, "no text"),
        ({"type": "named", "values": {"a": {"type": "text", "value": "x]"}}}, "no text"),
        ({"type": "list", "items": [{"type": "text", "value": ""}]}, "character"),
    ],
)
def test_bad_definitions_raise(data, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        from_data(data)


def test_bad_definitions_raise_in_python_too():
    with pytest.raises(ValueError, match="not both"):
        Number(value=1, decimals=2, rel_tol=0.1)
    with pytest.raises(ValueError, match="decimals"):
        Number(value=1, decimals=-1)


@pytest.mark.parametrize("answer", EVERY_TYPE, ids=ACCEPTED.keys())
def test_round_trip_through_json(answer):
    data = msgspec.json.decode(msgspec.json.encode(answer))
    assert from_data(data) == answer
    assert msgspec.json.decode(msgspec.json.encode(answer), type=Answer) == answer


# Properties, for any text and any answer.

NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=8)
UNITS = st.none() | st.sampled_from(["%", "EUR", "$", "kg", "m2", "percent"])
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = (
    st.builds(Number, value=FLOATS, unit=UNITS)
    | st.builds(Number, value=FLOATS, decimals=st.integers(0, 15), unit=UNITS)
    | st.builds(Number, value=FLOATS, rel_tol=st.floats(0, 1, exclude_max=True), unit=UNITS)
)
WORDS = st.text(max_size=20).filter(literals.fold)
AWKWARD = st.from_regex(r"[ab1\"'*`.,;:\[\]\n ]{1,8}", fullmatch=True).filter(literals.fold)
TEXT_ANSWERS = st.builds(Text, value=WORDS | AWKWARD, aliases=st.lists(WORDS, max_size=2).map(tuple))
DATES = (
    st.dates().map(lambda day: day.isoformat())
    | st.datetimes().map(lambda moment: moment.isoformat())
    | st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat())
    | st.times().map(lambda moment: moment.strftime("%H:%M"))
    | st.sampled_from(["2023", "2023-01", "January 5, 2023", "5 May 2023"])
).filter(lambda text: _is_moment(text))
FLAT = (
    NUMBERS
    | st.builds(Integer, value=st.integers(), unit=UNITS)
    | st.builds(Boolean, value=st.booleans())
    | st.lists(WORDS, min_size=1, max_size=4, unique_by=literals.fold).map(
        lambda options: Choice(value=options[-1], options=tuple(options))
    )
    | TEXT_ANSWERS
    | DATES.map(lambda value: Date(value=value))
    | st.builds(Labelled, label=WORDS | AWKWARD, number=NUMBERS)
    | st.just(NotApplicable())
)
NESTED = st.recursive(
    FLAT,
    lambda inner: st.builds(ListOf, items=st.lists(inner, max_size=5).map(tuple), ordered=st.booleans()),
    max_leaves=8,
)
SAFE_IN_NAMES = NESTED.filter(lambda answer: not set("[]") & set(reference_text(answer)))
ANSWERS = NESTED | st.dictionaries(NAMES, SAFE_IN_NAMES, min_size=1, max_size=3).map(
    lambda values: Named(values=values)
)
CANDIDATES = st.text(max_size=200) | st.from_regex(r"[@ab019.,;:%$€+\-_ \[\]\"'*e\n\x00]{0,40}", fullmatch=True)


def _is_moment(text: str) -> bool:
    try:
        return bool(literals.read_moment(text))
    except literals.NotThisType:
        return False


@given(CANDIDATES, ANSWERS)
@settings(max_examples=500, deadline=None)
def test_no_text_raises(text, answer):
    verdict = verify(text, answer)
    assert describe(answer) in verdict.reason
    assert literals.shown(text) in verdict.reason


@given(ANSWERS)
@settings(max_examples=500, deadline=None)
def test_the_reference_text_is_right(answer):
    verdict = verify(reference_text(answer), answer)
    assert verdict.correct, verdict.reason


@given(ANSWERS)
@settings(max_examples=300, deadline=None)
def test_any_answer_survives_json(answer):
    try:
        encoded = msgspec.json.encode(answer)
    except UnicodeEncodeError:  # a lone surrogate: no JSON holds it
        assume(False)
    assert from_data(msgspec.json.decode(encoded)) == answer


@given(
    ANSWERS,
    st.sampled_from(["{0} or {0}1", "I think {0}", "not {0}", "{0} ?", "{0} | x", "<answer>{0}</answer>"]),
)
@settings(deadline=None)
def test_hedges_and_sentences_are_wrong(answer, form):
    assert not verify(form.format(reference_text(answer)), answer).correct


@given(st.floats(-1e9, 1e9), st.integers(0, 6), st.floats(1.01, 1e6), st.sampled_from([1, -1]))
def test_off_by_more_than_half_a_unit_is_wrong(value, decimals, units, side):
    off = literals.exact(value) + side * Decimal(units) * Decimal(5).scaleb(-decimals - 1)
    assert not verify(f"{off:f}", Number(value=value, decimals=decimals)).correct


@given(st.floats(-1e9, 1e9), st.integers(0, 6))
def test_every_correct_rounding_is_right(value, decimals):
    assert verify(f"{value:.{decimals}f}", Number(value=value, decimals=decimals)).correct


@given(st.floats(1e-6, 1e9), st.floats(1e-6, 0.5), st.sampled_from([1, -1]))
def test_off_by_more_than_the_relative_tolerance_is_wrong(value, rel_tol, side):
    answer = Number(value=value, rel_tol=rel_tol)
    for factor, correct in ((Decimal("0.99"), True), (Decimal("1.01"), False)):
        got = literals.exact(value) * (1 + side * factor * literals.exact(rel_tol))
        assert verify(f"{got:f}", answer).correct is correct


@given(st.integers(), st.integers())
def test_another_integer_is_wrong(got, expected):
    assert verify(f"{got:,}", Integer(value=expected)).correct is (got == expected)


@given(st.lists(st.integers(-3, 3), max_size=6), st.lists(st.integers(-3, 3), max_size=6))
def test_lists_compare_as_sequences_or_as_multisets(got, expected):
    text = str(got)
    assert verify(text, integers(*expected)).correct is (got == expected)
    assert verify(text, integers(*expected, ordered=False)).correct is (sorted(got) == sorted(expected))


@given(st.text(max_size=60))
def test_unwrapping_twice_is_unwrapping_once(text):
    assert literals.strip_wrapping(literals.strip_wrapping(text)) == literals.strip_wrapping(text)
