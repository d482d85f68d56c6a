"""Records as real runs leave them: the fake ones that the tests of reports share."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib

from jupyter_env.action import ExecuteCode, FinalAnswer, tool_call
from jupyter_env.answer import Answer, Choice, Number, Text, reference_text, verify
from jupyter_env.episode import SYSTEM_PROMPT, CellRecord, EpisodeRecord, StopReason
from jupyter_env.interpreters.base import Status
from jupyter_env.interpreters.output import render_outputs

matplotlib.use("agg")

TASKS: list[tuple[str, str, str, str, Answer, str]] = [
    (
        "gapminder.groups.014",
        "medium",
        "Among the countries of Europe in 2007, what is the mean life expectancy, weighted by population?",
        "Answer with a number rounded to 2 decimals, without a unit.",
        Number(value=77.89, decimals=2),
        "gapminder.csv",
    ),
    (
        "penguins.cleaning.003",
        "easy",
        "Which species has the most rows in which `sex` is missing?",
        "Answer with the species' name as it stands in the table.",
        Choice(value="Gentoo", options=("Adelie", "Chinstrap", "Gentoo")),
        "penguins.csv",
    ),
    (
        "stocks.series.021",
        "hard",
        "Take the monthly closing prices of all symbols. Compute each symbol's monthly return, then its standard "
        "deviation over the months from 2005-01 to 2009-12. By what factor does the largest exceed the smallest?",
        "Answer with a number rounded to 3 decimals. Months without a previous month are left out.",
        Number(value=2.417, decimals=3),
        "stocks.csv",
    ),
    (
        "flights.relations.008",
        "hard",
        "Which airport has the longest mean arrival delay, of those with at least 50 arrivals in the table?",
        "Answer with the airport's full name from `airports.csv`.",
        Text(value="Dallas-Fort Worth International"),
        "airports.csv",
    ),
]

_FRAME = """            country  lifeExp        pop
11          Albania   76.423    3600523
83          Austria   79.829    8199783
119         Belgium   79.441   10392226
155  Bosnia and Herz.   74.852    4552198
191        Bulgaria   73.005    7322858"""

_TRACEBACK = [
    "\x1b[0;31m---------------------------------------------------------------------------\x1b[0m",
    "\x1b[0;31mKeyError\x1b[0m                                  Traceback (most recent call last)",
    "Cell \x1b[0;32mIn[2], line 3\x1b[0m\n\x1b[1;32m      1\x1b[0m europe \x1b[38;5;241m=\x1b[39m df[df"
    "[\x1b[38;5;124m'\x1b[39m\x1b[38;5;124mcontinent\x1b[39m\x1b[38;5;124m'\x1b[39m] == 'Europe']\n"
    "\x1b[0;32m----> 3\x1b[0m europe['life_exp'].mean()\n",
    "File \x1b[0;32m~/lib/python3.11/site-packages/pandas/core/frame.py:4102\x1b[0m, in DataFrame.__getitem__"
    "(self, key)\n\x1b[1;32m   4100\x1b[0m     return self._getitem_multilevel(key)\n"
    "\x1b[0;32m-> 4102\x1b[0m indexer = self.columns.get_loc(key)\n",
    "\x1b[0;31mKeyError\x1b[0m: 'life_exp'",
]


def png() -> str:
    """A real figure, as a kernel sends it."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.6, 3.2), dpi=100)
    axes.plot(range(1952, 2012, 5), [64.4, 66.7, 68.5, 69.7, 70.8, 71.9, 72.8, 73.6, 74.4, 75.5, 76.7, 77.6])
    axes.set(xlabel="year", ylabel="life expectancy", title="Europe")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode() + "\n"


def stream(text: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text}


def display(**data: str) -> dict[str, Any]:
    """A display of data by kind: `text_plain`, `image_png`, ..."""
    kinds = {name.replace("_", "/", 1).replace("svg", "svg+xml"): value for name, value in data.items()}
    return {"output_type": "display_data", "data": kinds, "metadata": {}}


def error(traceback: list[str], name: str = "KeyError", value: str = "'life_exp'") -> dict[str, Any]:
    return {"output_type": "error", "ename": name, "evalue": value, "traceback": traceback}


class Recorder:
    """Builds a record turn by turn, as an episode does."""

    def __init__(self, number: int = 0, agent: str = "qwen3-4b-sft", seed: int = 0, **fields: Any) -> None:
        task_id, level, question, guidelines, self.expected, file = TASKS[number % len(TASKS)]
        self.record = EpisodeRecord(
            **{
                "id": f"{task_id}.{agent}.{seed}",
                "task_id": task_id,
                "question": question,
                "guidelines": guidelines,
                "files": [file, "notes/columns.md"],
                "level": level,
                "dataset": task_id.partition(".")[0],
                "agent": agent,
                "seed": seed,
                **fields,
            }
        )
        user = f"{self.record.question}\n\nGuidelines: {self.record.guidelines}"
        self.record.messages = [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": user},
        ]

    def cell(
        self, code: str, *outputs: dict[str, Any], comment: str = "", status: Status = "ok", reasoning: str = ""
    ) -> Recorder:
        self._say(ExecuteCode(code=code, comment=comment), reasoning)
        turn, text = self.record.turns, render_outputs(outputs)
        seconds = 60.0 if status == "timeout" else 0.021 + 0.4 * turn
        self.record.cells.append(
            CellRecord(
                turn=turn,
                code=code,
                comment=comment,
                status=status,
                outputs=list(outputs),
                text=text,
                duration_s=seconds,
            )
        )
        self.record.cell_s += seconds
        observation = {"role": "tool", "tool_call_id": f"call_{turn}", "content": text or "(no output)"}
        self.record.messages.append(observation)
        return self

    def malformed(self, content: str, observation: str) -> Recorder:
        self.record.turns += 1
        self.record.malformed_turns += 1
        self.record.messages.append({"role": "assistant", "content": content})
        self.record.messages.append({"role": "user", "content": observation})
        return self

    def answer(self, text: str, reasoning: str = "") -> EpisodeRecord:
        self._say(FinalAnswer(answer=text), reasoning)
        self.record.answer = text
        self.record.verdict = verify(text, self.expected)
        self.record.reward = self.record.verdict.score
        return self.stop("answered")

    def stop(self, reason: StopReason, error: str | None = None) -> EpisodeRecord:
        self.record.stop_reason = reason
        self.record.error = error
        if reason != "infrastructure_error":
            self.record.expected = reference_text(self.expected)
        self.record.duration_s = self.record.cell_s + 3.7 * self.record.turns
        return self.record

    def _say(self, action: ExecuteCode | FinalAnswer, reasoning: str) -> None:
        self.record.turns += 1
        message = {"role": "assistant", "content": "", "tool_calls": [tool_call(action, f"call_{self.record.turns}")]}
        self.record.messages.append(message | ({"reasoning_content": reasoning} if reasoning else {}))


def realistic() -> list[EpisodeRecord]:
    """Twenty episodes of two agents, with every kind of end."""
    ends = [_solved, _wrong, _out_of_turns, _kernel_lost, _machine_failed]
    picked = [0, 0, 1, 0, 2, 0, 1, 3, 0, 4, 0, 1, 0, 0, 2, 1, 0, 1, 0, 3]
    return [
        ends[end](Recorder(number, "qwen3-4b-base" if number % 2 else "qwen3-4b-sft", seed=number // 4))
        for number, end in enumerate(picked)
    ]


_LOAD = "import pandas as pd\n\ndf = pd.read_csv('data/gapminder.csv')\nprint(df.shape)  # rows, columns\ndf.head()"


def _solved(recorder: Recorder) -> EpisodeRecord:
    thought = "I need the rows of Europe in 2007.\nThe mean has to be weighted, so I use its average."
    recorder.cell(
        _LOAD,
        stream("(1704, 6)\n"),
        {"output_type": "execute_result", "data": {"text/html": "<table>", "text/plain": _FRAME}, "metadata": {}},
        comment="I look at the table before I compute anything.",
        reasoning=thought,
    )
    recorder.cell(
        "europe = df[df['continent'] == 'Europe']\n\neurope['life_exp'].mean()",
        error(_TRACEBACK),
        comment="Now the mean over the European rows.",
        status="code_error",
    )
    recorder.malformed(
        'The column must be called `lifeExp`. I will compute\n<tool_call>\n{"name": "execute_code", "arguments"',
        "Error: the text in <tool_call> is not valid JSON: Expecting ':' delimiter: line 1 column 38 (char 37).\n"
        "Make exactly one call a turn, to execute_code or final_answer.",
    )
    recorder.cell(
        "import matplotlib.pyplot as plt\nimport numpy as np\n\nby_year = df.groupby('year').apply(\n"
        "    lambda g: np.average(g['lifeExp'], weights=g['pop'])\n)\nby_year.plot(title='Europe')\nplt.show()",
        stream("FutureWarning: DataFrameGroupBy.apply operated on the grouping columns.\n", "stderr"),
        display(image_png=png(), text_plain="<Figure size 560x320 with 1 Axes>"),
        comment="A figure shows whether a year is out of line.",
    )
    recorder.cell(
        "for row in df.itertuples():\n    print(row.country, row.year, row.lifeExp)",
        stream("".join(f"country {n:04d}  {1952 + n % 12 * 5}  {40 + n % 37:.3f}\n" for n in range(600))),
        comment="I read through the rows.",
    )
    return recorder.answer(reference_text(recorder.expected), reasoning="The value is clear; I give it rounded.")


def _wrong(recorder: Recorder) -> EpisodeRecord:
    recorder.cell(_LOAD, stream("(1704, 6)\n"), comment="First I load the data.")
    recorder.cell("df['lifeExp'].mean().round(1)", display(text_plain="59.5"), comment="The plain mean.")
    return recorder.answer("about 59.5 years")


def _out_of_turns(recorder: Recorder) -> EpisodeRecord:
    for turn in range(6):
        recorder.malformed(f"Let me think about step {turn + 1} first.", "Error: the message holds no call.")
    return recorder.stop("turn_limit")


def _kernel_lost(recorder: Recorder) -> EpisodeRecord:
    recorder.cell("while True:\n    pass", status="timeout", comment="I wait until the value settles.")
    recorder.cell("x = bytearray(10**12)", status="out_of_memory", comment="I allocate a large table.")
    return recorder.stop("kernel_lost")


def _machine_failed(recorder: Recorder) -> EpisodeRecord:
    recorder.cell(_LOAD, stream("(1704, 6)\n"))
    return recorder.stop("infrastructure_error", "no space left on device while the kernel was started")
