"""DABstep's official scorer, rewritten from its rules, so that reported numbers compare with published ones.

For reports only, never for a reward: a policy can please it without knowing the answer. Rewards come from
`jupyter_env.answer.verify`.

Source: `dabstep_benchmark/evaluation/scorer.py` of the Hugging Face Space adyen/DABstep (blob fe76459), with
None counted as wrong, as the newest version does. Earlier copies (smolagents era) have a wider pattern for
numbers and a tolerance of 1e-2: say which one gave a figure.

What surprises, all of it kept:
- the sign of a number is ignored, and so are its exponent and its per cent sign (-5 is 5, "5%" is not 0.05);
- only the first number of each text counts: "2023-01-05" is "2023-12-31", "F:13.57" is "E:13.57", "A1" is
  "B1", "5 or 6" is 5;
- one word is right if the other text holds it: "yes and no" is "yes", "not" is "Not Applicable";
- two numbers below 1 are not rounded before they are compared: "0.12" is not 0.120132, but "2.1" is 2.12;
- "384,394" is one number, "1,000, 2,000" four items, "€1,234" two;
- lists are sorted as text before their items are compared in pairs, which can pair near-equal items wrongly;
- an underscore is a letter: "Belles cookbook store" is not "Belles_cookbook_store".
"""

from __future__ import annotations

import math
import re
from difflib import SequenceMatcher

_NUMBER_WITH_SEPARATOR = re.compile(r"^\$?(\d{1,3}(,\d{3})+(\.\d+)?|\d+[.,]\d+)$")
_FIRST_NUMBER = re.compile(r"(\d*\.\d+|\d+\.?\d*)%?")


def question_scorer(candidate: str | None, reference: str | None) -> bool:
    """Whether the official scorer of DABstep calls the candidate right."""
    if candidate is None or reference is None:
        return False
    left, right = candidate.strip().lower(), reference.strip().lower()
    numbers = _first_number(left), _first_number(right)
    if _NUMBER_WITH_SEPARATOR.match(left) or _NUMBER_WITH_SEPARATOR.match(right):
        return _same_number(*numbers)
    if re.search("[,;]", left + right):
        return _same_list(_items(left), _items(right))
    if None not in numbers:
        return _same_number(*numbers)
    return _same_words(left, right)


def _first_number(text: str) -> float | None:
    found = _FIRST_NUMBER.search(text.replace(",", "").replace("$", ""))
    return float(found[1]) if found else None


def _same_number(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return False
    if left == right:
        return True
    if left >= 1 or right >= 1:
        places = min(_decimal_places(left), _decimal_places(right))
        if round(left, places) == round(right, places):
            return True
    return math.isclose(left, right, rel_tol=1e-4, abs_tol=1e-4)


def _decimal_places(number: float) -> int:
    """Of the float as Python prints it: one for 5.0, none for 1e+16."""
    return len(str(number).partition(".")[2])


def _items(text: str) -> list[str]:
    """The items of a list, sorted as text."""
    parts = re.split("[,;]", text.removeprefix("[").removesuffix("]"))
    return sorted(part.strip() for part in parts if part.strip())


def _same_list(left: list[str], right: list[str]) -> bool:
    if left == right:
        return True
    return len(left) == len(right) and all(map(question_scorer, left, right))


def _same_words(left: str, right: str) -> bool:
    if re.sub(r"[^\w]", "", left) == re.sub(r"[^\w]", "", right):
        return True
    left_words, right_words = re.findall(r"\w+", left), re.findall(r"\w+", right)
    if len(left_words) == 1:
        return left_words[0] in right_words
    if len(right_words) == 1:
        return right_words[0] in left_words
    return SequenceMatcher(None, left, right).ratio() > 0.95
