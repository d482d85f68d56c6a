"""DABstep's official scorer: recorded verdicts of the original, and cases derived by hand from its rules."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_env.answer import Number, Text, verify
from jupyter_env.dabstep_compat import question_scorer

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "data" / "dabstep" / "scorer_cases.jsonl"

BY_HAND = [
    # The sign is ignored, everywhere.
    ("-5", "5", True),
    ("-0.94", "0.94", True),
    ("+7", "-7", True),
    # Only the first number counts: dates, labels, hedges.
    ("2023-01-05", "2023-12-31", True),
    ("2023-01-05", "2024-01-05", False),
    ("F:13.57", "E:13.57", True),
    ("GlobalCard:0.12", "NexPay:0.12", True),
    ("A1", "B1", True),
    ("5 or 6", "5", True),
    ("6 or 5", "5", False),
    ("The top 3 share is 59.96", "59.96", False),
    # One word is right if the other text holds it, in either direction.
    ("yes and no", "yes", True),
    ("yes", "yes and no", True),
    ("not", "Not Applicable", True),
    ("applicable", "Not Applicable", True),
    ("no", "not", False),
    ("Inditex Spotify Nike", "Nike", True),
    # Several words on both sides: nearly the same letters in the same order.
    ("not aplicable at all times", "not applicable at all times", True),
    ("New York City", "York New City", False),
    ("Belles cookbook store", "Belles_cookbook_store", False),  # an underscore is a letter
    ("Belles-cookbook-store", "Belles cookbook store", True),  # a hyphen is not
    # No word at all.
    ("", "", True),
    ("!!!", "", True),
    ("?", "Inditex", False),
    ("", "5", False),
    # Rounding: to the decimals of the coarser one, but not when both are below 1.
    ("2.1", "2.12", True),
    ("2.1", "2.16", False),
    ("0.12", "0.120132", False),
    ("0.12005", "0.12", True),  # within 1e-4
    ("0.9", "1.04", False),
    ("1.0", "0.96", True),  # one is not below 1: both round to 1.0
    ("5", "5.04", True),  # a whole number counts as one decimal
    ("5", "5.06", False),
    ("100000", "100009", True),  # a ten-thousandth apart at most
    ("100000", "100011", False),
    # Notation of numbers.
    ("1e3", "1000", False),
    ("5%", "0.05", False),
    ("5%", "5", True),
    ("$1,234.50", "1234.5", True),
    ("€1,234", "1234", False),  # two items: €1 and 234
    ("-1,234", "1234", False),  # nor has the comma pattern a minus
    ("1.234,5", "1234.5", False),
    ("1,2", "12", True),  # a decimal comma is deleted
    ("384,394", "384394", True),
    ("384,394", "384, 394", False),
    ("1,000, 2,000", "1000, 2000", False),
    ("1,000; 2,000", "1,000, 2,000", True),
    (".5", "0.5", True),
    ("5.", "5", True),
    ("NL", "3.14", False),  # one is a number with a point, the other has no number
    # Lists.
    ("B, A", "A; B", True),
    ("[A, B]", "A, B", True),
    ("[[A, B]]", "[A, B]", True),  # one bracket is taken away, the other is punctuation
    ("A, A, B", "A, B", False),
    ("A, A, B", "A, B, B", False),
    ("A, , B,", "A, B", True),  # empty items drop out
    (",", ";", True),
    ("A", "A, B", False),
    ("10.04, 9.96", "9.9, 10.0", False),
    ("a 9, b 1", "a 1, b 9", False),  # sorted as text, then paired
    ("9.001, 10", "10, 9.0", True),
    # Case and surrounding space do not matter.
    ("  nl\n", "NL", True),
]


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded cases of the official scorer are not here")
def test_every_recorded_verdict():
    cases = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    wrong = [case for case in cases if question_scorer(case["candidate"], case["reference"]) != case["expected"]]
    assert len(cases) == 106
    assert wrong == []


@pytest.mark.parametrize(("candidate", "reference", "expected"), BY_HAND)
def test_by_hand(candidate, reference, expected):
    assert question_scorer(candidate, reference) is expected
    assert question_scorer(reference, candidate) is expected


@pytest.mark.parametrize(("candidate", "reference"), [(None, "5"), ("5", None), (None, None)])
def test_none_is_wrong(candidate, reference):
    assert question_scorer(candidate, reference) is False


TEXTS = st.text(max_size=60) | st.from_regex(r"[ab19.,;:%$\-_ \[\]]{0,16}", fullmatch=True)


@given(TEXTS, TEXTS)
def test_symmetry(left, right):
    assert question_scorer(left, right) is question_scorer(right, left)


@given(TEXTS)
def test_every_text_equals_itself(text):
    assert question_scorer(text, text) is True


def test_it_forgives_what_the_strict_verifier_refuses():
    assert question_scorer("-5 or 6", "5")
    assert not verify("-5 or 6", Number(value=5)).correct
    assert question_scorer("yes and no", "yes")
    assert not verify("yes and no", Text(value="yes")).correct
