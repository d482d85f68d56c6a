"""Agents without a model: an oracle that proves that tasks can be solved, and two honest weak ones to compare with.

Each is a `Model` (messages and tools in, reply out), as language models are. Only the oracle is given the task;
the others see what a model would see.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from jupyter_env.action import ExecuteCode, FinalAnswer, Message, tool_call
from jupyter_env.answer import reference_text
from jupyter_env.chat import Model, Reply
from jupyter_env.task import Task

MakeModel = Callable[[Task, int], Model]
"""A model for one episode of this task with this seed."""


def _call(action: ExecuteCode | FinalAnswer) -> Reply:
    return Reply(message={"role": "assistant", "content": "", "tool_calls": [tool_call(action)]})


def oracle(task: Task, seed: int) -> Model:
    """Looks at the first table, runs the task's reference code and answers with its last printed line.

    A task without reference code is answered with its expected answer.
    """

    async def respond(messages: Sequence[Message], _tools: Sequence[dict[str, Any]]) -> Reply:
        if task.reference_code is None:
            return _call(FinalAnswer(answer=reference_text(task.answer)))
        turn = sum(message["role"] == "assistant" for message in messages)
        steps = [*([_look(task.files[0].path)] if task.files else []), _solve(task.reference_code)]
        if turn < len(steps):
            return _call(steps[turn])
        shown = re.sub(r"\n\[\d+ turns? left: call final_answer\]$", "", str(messages[-1]["content"]))
        return _call(FinalAnswer(answer=(shown.strip().splitlines() or [""])[-1]))

    return respond


def _look(path: str) -> ExecuteCode:
    code = (
        "import matplotlib.pyplot as plt\nimport pandas as pd\n\n"
        f"table = pd.read_csv({'data/' + path!r})\n"
        'numbers = table.select_dtypes("number").iloc[:, :4]\n'
        "if numbers.shape[1]:\n    numbers.hist(figsize=(6, 4), bins=20)\n    plt.tight_layout()\n    plt.show()\n"
        "table.head()"
    )
    return ExecuteCode(code=code, comment="I look at the table and how its numbers are distributed.")


def _solve(code: str) -> ExecuteCode:
    return ExecuteCode(code=code, comment="I compute the answer step by step.")


def guess(task: Task, seed: int) -> Model:
    """Never opens the data: answers with a number or a word, by what the guidelines ask for."""
    rng = random.Random(f"guess {task.id} {seed}")

    async def respond(messages: Sequence[Message], _tools: Sequence[dict[str, Any]]) -> Reply:
        asked = str(messages[1]["content"])
        answer = str(rng.randint(1, 100)) if _wants_number(asked) else rng.choice(_names(asked) or ["unknown"])
        return _call(FinalAnswer(answer=answer))

    return respond


def peek(task: Task, seed: int) -> Model:
    """Reads the first five rows of the first table and answers as if they were all of it."""
    rng = random.Random(f"peek {task.id} {seed}")

    async def respond(messages: Sequence[Message], _tools: Sequence[dict[str, Any]]) -> Reply:
        asked = str(messages[1]["content"])
        if len(messages) == 2:
            paths = re.findall(r"^- (data/.*) \([^()]*\)$", asked, re.MULTILINE)
            code = (
                "import pandas as pd\n\n"
                + f"print(pd.read_csv({(paths or ['data'])[0]!r}).head().to_json(orient='columns'))"
            )
            return _call(ExecuteCode(code=code, comment="I look at the first rows."))
        try:
            columns = json.loads(str(messages[-1]["content"]).splitlines()[0])
            head = {name: list(values.values()) for name, values in columns.items()}
        except (ValueError, IndexError, AttributeError):
            head = {}
        return _call(FinalAnswer(answer=_answer_from_head(head, asked, rng)))

    return respond


def _answer_from_head(head: dict[str, list[Any]], asked: str, rng: random.Random) -> str:
    """The mean of a numeric column, or the most common text, of the columns that the question names."""
    named = {name: values for name, values in head.items() if name in asked} or head
    numbers = [v for v in named.values() if any(isinstance(x, int | float) for x in v)]
    texts = [v for v in named.values() if any(isinstance(x, str) for x in v)]
    if _wants_number(asked) and numbers:
        return f"{fmean(x for x in rng.choice(numbers) if isinstance(x, int | float)):.2f}"
    if texts:
        return str(Counter(x for x in rng.choice(texts) if isinstance(x, str)).most_common(1)[0][0])
    return "0"


def _wants_number(asked: str) -> bool:
    guidelines = asked.partition("Guidelines:")[2].partition("\n")[0].lower()
    return bool(re.search(r"\b(number|integer|decimals?|percent\w*|whole)\b", guidelines))


def _names(asked: str) -> list[str]:
    return re.findall(r"[`'\"]([^`'\"\n]{1,40})[`'\"]", asked) or re.findall(r"\b[A-Z][a-z]+\b", asked)


AGENTS: dict[str, MakeModel] = {"oracle": oracle, "guess": guess, "peek": peek}
