"""A model behind a real HTTP server that answers the pipeline's prompts from the labelled questions."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from authored import Labelled, labelled, sources
from servers import Answer, Behave, call, completion

Reply = Callable[[dict[str, Any]], Answer]
GOOD = {
    "justification": "It loads a table, analyses it in connected steps and explains them.",
    "educational_score": 5,
    "is_data_analysis": True,
    "uses_its_tables": True,
    "trains_language_models": False,
}
POOR = {**GOOD, "justification": "There is hardly any analysis.", "educational_score": 2}


def kind_of(body: dict[str, Any]) -> str:
    """Which prompt a request is: `score`, `ask`, `read`, `blind`, or `work` of the teacher."""
    if body.get("tools"):
        return "work"
    text = body["messages"][-1]["content"]
    marks = {
        "score": "\nTask: judge the notebook",
        "ask": "\nTask: write up to",
        "read": "\nTask: answer this question",
        "blind": "A question about data files that you do not have",
    }
    return next(kind for kind, mark in marks.items() if mark in text)


class Script:
    """Replies from the labels.

    Args:
        gullible: the second reader agrees with every draft, and finds nothing ambiguous.
        titles: of more notebooks, by title, with their name in the labels.
    """

    def __init__(
        self, questions: list[Labelled] | None = None, *, gullible: bool = False, titles: dict[str, str] | None = None
    ) -> None:
        self.questions = labelled() if questions is None else questions
        self.gullible = gullible
        self.titles = {source.cells[0][1].split("\n")[0]: source.name for source in sources()} | (titles or {})

    def __call__(self, body: dict[str, Any], number: int) -> Answer:
        kind = kind_of(body)
        if kind == "work":
            return self.work(body)
        return completion(json.dumps(getattr(self, kind)(body["messages"][-1]["content"], body)))

    def notebook(self, text: str) -> str | None:
        return next((name for title, name in self.titles.items() if f"\n{title}\n" in text), None)

    def score(self, text: str, body: dict[str, Any]) -> Any:
        known = {question.notebook for question in self.questions}
        return GOOD if self.notebook(text) in known else POOR

    def ask(self, text: str, body: dict[str, Any]) -> Any:
        name = self.notebook(text)
        return {"questions": [question.draft for question in self.questions if question.notebook == name]}

    def asked(self, text: str) -> Labelled:
        return max(
            (question for question in self.questions if question.draft["question"] in text),
            key=lambda question: len(question.draft["question"]),
        )

    def read(self, text: str, body: dict[str, Any]) -> Any:
        question = self.asked(text.rpartition("Task: answer this question")[2])
        if self.gullible:
            answer = ", ".join(question.draft["answer"])
            return {"reasoning": "Yes.", "answerable": True, "ambiguous": False, "answer": answer}
        return question.reads

    def blind(self, text: str, body: dict[str, Any]) -> Any:
        guesses = self.asked(text).blind
        return {"reasoning": "I guess.", "answer": guesses[body.get("seed", 0) % len(guesses)]}

    def work(self, body: dict[str, Any]) -> Answer:
        """Look at the table, run the reference code, answer with what it printed; by the seed in one step more."""
        messages = body["messages"]
        question = self.asked(messages[1]["content"])
        path = re.findall(r"^- (data/.*) \([^()]*\)$", messages[1]["content"], re.MULTILINE)
        turn = sum(message["role"] == "assistant" for message in messages)
        look = f"import pandas as pd\n\nprint(pd.read_csv({path[0]!r}).head(3))" if path else "print('no table')"
        cells = [("Ok, here is the plan: I look at the table and then compute.", look)]
        if body.get("seed"):
            cells.append(("I see how many values are missing.", f"print(pd.read_csv({path[0]!r}).isna().sum())"))
        code = question.draft["code"]
        for source in sources():  # where the task has the table
            code = code.replace(source.path, path[0] if path else "")
        cells.append(("Now I compute the answer from the table.", code))
        if turn < len(cells):
            comment, code = cells[turn]
            return completion(calls=[call("execute_code", {"code": code, "comment": comment})], finish="tool_calls")
        shown = re.sub(r"\n\[\d+ turns? left: call final_answer\]$", "", messages[-1]["content"])
        return completion(calls=[call("final_answer", {"answer": shown.strip().splitlines()[-1]})], finish="tool_calls")


def sometimes(behave: Behave, trouble: Callable[[int], Answer | None]) -> Behave:
    """The same, but for requests that trouble comes to, by their number."""
    return lambda body, number: trouble(number) or behave(body, number)


def is_inventing(body: dict[str, Any]) -> bool:
    """Whether the model is asked to stand in for the interpreter."""
    return "stateful Python code interpreter" in body["messages"][0]["content"]


class Inventing(Script):
    """It stands in for the interpreter too: what the reference code would print, it knows from the labels."""

    def __call__(self, body: dict[str, Any], number: int) -> Answer:
        if not is_inventing(body):
            return super().__call__(body, number)
        code = body["messages"][1]["content"].rpartition("<cell_to_execute>")[2]
        known = [question for question in self.questions if question.draft["code"].splitlines()[-1] in code]
        shown = ", ".join(known[0].draft["answer"]) if known else "  species  island\n0  Adelie  Dream"
        return completion(f'<output_cell status="ok">\n{shown}\n</output_cell>')


if __name__ == "__main__":  # a server for tests that start one: `scripted.py PORT`
    from servers import ScriptedServer

    with ScriptedServer(Script(), port=int(sys.argv[1])):
        time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 3600)
