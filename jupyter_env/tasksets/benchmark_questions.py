"""Questions of benchmarks, known by their hashes alone, so that none of them gets into training data.

The file holds the sha256 of DABstep's 450 questions and of those of DABench, each with letters lower-cased and
everything but letters and digits made one space.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

FILE = Path(__file__).parent / "benchmark_questions.txt"


def question_hash(question: str) -> str:
    """The hash by which a question is known."""
    return hashlib.sha256(re.sub(r"\W+", " ", question.lower()).strip().encode()).hexdigest()


@cache
def _known() -> frozenset[str]:
    lines = FILE.read_text("ascii").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def is_benchmark_question(text: str) -> bool:
    """Whether a text, one of its lines or one of its sentences is a benchmark's question, but for case and marks."""
    parts = {text, *text.splitlines(), *re.split(r"(?<=[.?!])\s+", text)}
    return any(question_hash(part) in _known() for part in parts)
