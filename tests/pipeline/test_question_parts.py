"""The parts that questions go through, one by one."""

import json
from typing import Any

import pytest

from jupyter_env.action import ExecuteCode, FinalAnswer, tool_call
from jupyter_env.answer import Answer, Date, Integer, ListOf, Number, Text, verify
from jupyter_env.episode import CellRecord, EpisodeRecord
from jupyter_env.interpreters.output import OutputLimits
from jupyter_env.tasksets.benchmark_questions import is_benchmark_question
from pipeline.conversation import conversation, turn_status
from pipeline.drafts import Draft, DraftError, lower_level, missing_path, refined, typed_answer
from pipeline.evidence import missing_evidence
from pipeline.excerpt import estimate_tokens, excerpt, output_of
from pipeline.lineage import groups, held_out
from pipeline.meaning import Question, duplicates, mean_the_same
from pipeline.prompts import prompt
from pipeline.triviality import level_of, steps, why_unwanted


def draft(**fields: Any) -> Draft:
    given = {
        "reasoning": "", "question": "What is it, then?", "guidelines": "", "kind": "number", "answer": ["1.5"],
        "decimals": None, "unit": "", "ordered": True, "evidence_cell": 2, "evidence": "1.5", "level": "hard",
        "code": "1",
    }  # fmt: skip
    return Draft(**{**given, **fields})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"answer": ["0.4"], "decimals": 2}, Number(value=0.4, decimals=2)),
        ({"answer": ["1,234.50"]}, Number(value=1234.5, decimals=2)),
        ({"answer": ["38.4%"], "unit": "%"}, Number(value=38.4, decimals=1, unit="%")),
        ({"answer": ["7"]}, Integer(value=7)),
        ({"answer": ["7"], "decimals": 2}, Number(value=7.0, decimals=2)),
        ({"kind": "integer", "answer": ["1,200"]}, Integer(value=1200)),
        ({"kind": "date", "answer": ["2015-03"]}, Date(value="2015-03")),
        ({"kind": "text", "answer": ["a, b"]}, Text(value="a, b")),
        (
            {"kind": "text", "answer": ["x", "y"], "ordered": False},
            ListOf(items=(Text(value="x"), Text(value="y")), ordered=False),
        ),
    ],
)
def test_answers_are_typed(fields: dict[str, Any], expected: Answer) -> None:
    assert typed_answer(draft(**fields)) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"answer": ["about 5"]},
        {"answer": ["5 or 6"]},
        {"kind": "integer", "answer": ["5.5"]},
        {"kind": "date", "answer": ["in spring"]},
        {"kind": "text", "answer": ["  "]},
    ],
)
def test_answers_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(DraftError):
        typed_answer(draft(**fields))


def test_numbers_are_kept_as_code_prints_them() -> None:
    answer = refined(Number(value=7.277, decimals=3), "7.2775")
    assert all(verify(text, answer).correct for text in ("7.277", "7.278", "7.2775"))
    pair = ListOf(items=(Number(value=0.3, decimals=1), Text(value="a")))
    assert refined(pair, "0.26, a") == ListOf(items=(Number(value=0.26, decimals=1), Text(value="a")))


def test_levels() -> None:
    assert lower_level("expert", "medium") == lower_level("medium", "hard") == "medium"
    assert [level_of(count) for count in (2, 5, 9, 20)] == ["easy", "medium", "hard", "expert"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("../input/titanic/train.csv", "titanic/train.csv"),
        (r"C:\data\train.csv", "train.csv"),
        ("/etc/../../passwd", "passwd"),
        ("..", ""),
    ],
)
def test_tables_that_are_missing_have_safe_paths(name: str, path: str) -> None:
    assert missing_path(name) == path


OUTPUT = """mean of x: 12.3456
share 0.4
Male     1,204
[New York City]   2015-03-01 00:00:00
-7.5e-03"""


@pytest.mark.parametrize(
    ("answer", "there"),
    [
        (Number(value=12.35, decimals=2), True),
        (Number(value=12.34, decimals=2), False),
        (Integer(value=1204), True),
        (Integer(value=204), False),
        (Integer(value=12), False),
        (Number(value=40, decimals=0, unit="%"), True),
        (Number(value=-0.0075, decimals=4), True),
        (Text(value="new york city"), True),
        (Text(value="York"), True),
        (Text(value="Yor"), False),
        (Date(value="2015-03-01"), True),
        (Date(value="2015-03-02"), False),
        (ListOf(items=(Text(value="Male"), Integer(value=1204))), True),
        (ListOf(items=(Text(value="Male"), Integer(value=5))), False),
    ],
)
def test_the_answer_is_in_the_output(answer: Answer, there: bool) -> None:
    assert (missing_evidence(answer, "share   0.4", OUTPUT) is None) is there


def test_a_quote_that_was_made_up() -> None:
    assert missing_evidence(Integer(value=1204), "Male 1,205", OUTPUT) is not None


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("How many rows are in the table?", "trivial"),
        ("What is the total number of columns?", "trivial"),
        ("How many missing values are there?", "trivial"),
        ("How many records have a price above 10 and were sold in May?", None),
        ("How many unique values does the column city have?", "trivial"),
        ("What is shown in the notebook for Paris?", "about_the_notebook"),
        ("Which key of df has the largest mean?", "about_the_notebook"),
        ("What is the code (iata) of the northernmost airport?", None),
        ("What accuracy does the classifier reach?", "about_model_scores"),
        ("Which car model has the best score in the test of brakes?", None),
        ("In which region did the mean price per square metre rise most from 2001 to 2010?", None),
    ],
)
def test_questions_by_their_words(question: str, reason: str | None) -> None:
    found = why_unwanted(question)
    assert (found[0] if found else None) == reason


@pytest.mark.parametrize(
    ("code", "least", "most"),
    [
        ("print(len(t))", 0, 1),
        ("print(t.a.mean())", 0, 1),
        ("print(t.a.mean(), t.b.mean(), t.c.max())", 0, 1),
        ("print(t[t.a > 3].b.mean())", 2, 2),
        ("print(t.groupby('a').b.mean().idxmax())", 3, 3),
        ("print('a' + str(t.a.sum()))", 0, 1),
        ("n = 0\nfor r in t.itertuples():\n    if r.a > 3:\n        n += 1\nprint(n)", 2, 3),
    ],
)
def test_steps(code: str, least: int, most: int) -> None:
    assert least <= steps(code) <= most


def test_benchmark_questions_are_known() -> None:
    assert is_benchmark_question("calculate the MEAN fare, paid by the passengers")
    assert is_benchmark_question("We have a table. Calculate the mean fare paid by the passengers.")
    assert not is_benchmark_question("Calculate the median fare paid by the passengers of the first class.")


TITANIC = frozenset({"titanic"})


def about(text: str, answer: Answer, data: frozenset[str] = TITANIC) -> Question:
    return Question(text, answer, data)


SHARE = Number(value=0.3838, decimals=4)
PAIRS: list[tuple[Question, Question, bool]] = [
    (
        about("What share of the passengers survived?", SHARE),
        about(
            "What is the overall survival rate of passengers, in per cent?", Number(value=38.38, decimals=2, unit="%")
        ),
        True,
    ),
    (
        about("What proportion of all people on board survived the sinking?", SHARE),
        about("What fraction of passengers survived?", Number(value=0.384, decimals=3)),
        True,
    ),
    (
        about("Which port did the most passengers in first class come from?", Text(value="S")),
        about("From which port did the largest number of first class passengers come?", Text(value="S")),
        True,
    ),
    (
        about("Which port did the most passengers in first class come from?", Text(value="S")),
        about("Which port has the lowest mean fare among women over 40?", Text(value="S")),
        False,
    ),
    (
        about("How many women in second class survived?", Integer(value=70)),
        about("How many women in third class survived?", Integer(value=72)),
        False,
    ),
    (
        about("How many children died?", Integer(value=5)),
        about("How many cabins have more than four passengers?", Integer(value=5)),
        False,
    ),
    (
        about("What is the mean fare of women in first class?", Number(value=106.13, decimals=2)),
        about(
            "What is the mean fare of women in the first class?", Number(value=106.13, decimals=2), frozenset({"copy"})
        ),
        True,
    ),
    (
        about("What is the mean fare of women in first class?", Number(value=106.13, decimals=2)),
        about("How high is the debt per head in Norway?", Number(value=106.13, decimals=2), frozenset({"debt"})),
        False,
    ),
]


@pytest.mark.parametrize(("one", "other", "same"), PAIRS)
def test_the_same_by_meaning(one: Question, other: Question, same: bool) -> None:
    assert mean_the_same(one, other) is same
    assert mean_the_same(other, one) is same
    assert (list(duplicates([one, other])) != []) is same, "found among many too"


def row(notebook: str, **fields: Any) -> dict[str, Any]:
    return {"notebook": notebook, "datasets": [], "hashes": [], "kernel_version": None, "forked_from": None, **fields}


def test_lineage() -> None:
    rows = [
        row("a", datasets=["x/y@1"]),
        row("b", datasets=["x/y@2"]),
        row("c", hashes=["h"], kernel_version=7),
        row("d", hashes=["h"]),
        row("e", forked_from=7),
        row("f"),
        row("f"),
    ]
    names = groups(rows)
    assert names[0] == names[1], "versions of a data set"
    assert names[2] == names[3] == names[4], "a table, a fork"
    assert names[5] == names[6] and len(set(names)) == 3
    assert groups(rows[::-1]) == names[::-1]


def test_whole_groups_are_held_out() -> None:
    names = [f"g{n % 10}" for n in range(100)]
    held = held_out(names, 0.2, seed=1)
    assert len(held) == 2 and held == held_out(names[::-1], 0.2, seed=1)
    assert held_out(["one"] * 9, 0.5, seed=0) == set(), "something must be left to train on"
    assert held_out(["a", "a", "b", "c"], 0.01, seed=0) in ({"b"}, {"c"}), "something to be tried on"
    assert held_out(["a", "b"], 0.0, seed=0) == set()


TEXT = "\n\n".join(
    f"[cell {n} code]\n```python\nx = {n}\n```\n\n[cell {n} output]\n```\n"
    + "\n".join(f"{i} {i * n}" for i in range(200))
    + "\n```"
    for n in range(1, 40)
)


@pytest.mark.parametrize("room", [500, 2000, 8000, 30_000])
def test_an_excerpt_fits_and_says_what_is_left_out(room: int) -> None:
    cut = excerpt(TEXT, room)
    assert estimate_tokens(cut) <= room
    assert cut.startswith("[cell 1 code]")
    assert "shown]" in cut or "left out here]" in cut
    assert excerpt(TEXT, 10**7) == TEXT
    assert "39 7761" not in cut or "[cell 39 output]" in cut


def test_outputs_are_found_by_their_cell() -> None:
    output = output_of(TEXT, 7)
    assert output is not None and output.startswith("0 0\n1 7\n") and output.endswith("199 1393")
    assert output_of(TEXT, 99) is None


def test_prompts_have_a_version_and_take_text_as_it_is() -> None:
    read = prompt("read")
    assert read.version == 1 and read.identity.startswith("read 1 ")
    assert "{{guidelines}} {0} %s" in read.fill(question="{{guidelines}} {0} %s", guidelines="{{question}}")
    with pytest.raises(KeyError, match="slots"):
        read.fill(question="?")


def record() -> EpisodeRecord:
    long = "\n".join(map(str, range(100)))
    outputs = [{"output_type": "stream", "name": "stdout", "text": long}]
    run = tool_call(ExecuteCode(code="print(1)", comment="I look."), "c1")
    cell = CellRecord(turn=1, code="print(1)", comment="I look.", status="ok", outputs=outputs, text=long, duration_s=0)
    return EpisodeRecord(
        id="e", task_id="t", question="?", turns=3, stop_reason="answered", answer="1",
        messages=[
            {"role": "system", "content": "The teacher's prompt."},
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [run]},
            {"role": "tool", "tool_call_id": "c1", "content": f"{long}\n[2 turns left: call final_answer]"},
            {"role": "assistant", "content": "<think>Hm.</think>I forgot to call."},
            {"role": "user", "content": "Error: no call."},
            {"role": "assistant", "content": "", "tool_calls": [tool_call(FinalAnswer(answer="1"), "c2")]},
        ],
        cells=[cell],
    )  # fmt: skip


def test_a_conversation_for_the_student() -> None:
    thinking, plain = conversation(record(), thinking=True), conversation(record(), thinking=False)
    assert "teacher" not in thinking.text + plain.text
    assert thinking.messages[2]["reasoning_content"] == plain.messages[2]["content"] == "I look."
    assert thinking.messages[4] == {"role": "assistant", "content": "I forgot to call.", "reasoning_content": "Hm."}
    assert plain.messages[4] == {"role": "assistant", "content": "Hm.\n\nI forgot to call."}
    assert turn_status(record()) == ["ok", "malformed", "answered"]
    assert json.loads(json.dumps(thinking.messages)) == thinking.messages


def test_outputs_are_shortened_by_the_one_function() -> None:
    short = conversation(record(), thinking=True, limits=OutputLimits(max_lines=4))
    assert "[4 of 100 lines shown]" in short.messages[3]["content"]
    assert short.messages[3]["content"].endswith("[2 turns left: call final_answer]")
