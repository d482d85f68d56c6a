"""A benchmark of your own: three questions about a table, run, scored and compared, with any agent.

    python examples/benchmark.py

To run a model on it, save the pool and use the command line:
`jupyter-env rollout shop/tasks.jsonl --model NAME --base-url http://localhost:8000/v1 --n 8`.
"""

import asyncio
import csv
import sys
from pathlib import Path

from jupyter_env import DataFile, Task, TaskPool
from jupyter_env.answer import Integer, Number, Text
from jupyter_env.evaluate import evaluate
from jupyter_env.rollout import plan, rollout
from jupyter_env.scripted import AGENTS

# 1. The data: one table a folder; your own loader reads whatever your benchmark ships.
ROWS = [("shop", "items", "revenue")] + [(f"shop {i % 7}", i % 5 + 1, round(i * 1.75, 2)) for i in range(140)]
# 2. The questions: text, how to write the answer, the typed answer, how hard, and code that computes it.
QUESTIONS = [
    ("How many rows are there?", "A whole number.", Integer(value=140), "easy", "print(len(t))"),
    ("Which shop has the highest revenue in all?", "Its name.", Text(value="shop 6"), "medium",
     "print(t.groupby('shop').revenue.sum().idxmax())"),
    ("What is the mean revenue of sales of 3 items?", "Rounded to 2 decimals.", Number(value=121.625, decimals=2),
     "medium", "print(f\"{t.revenue[t['items'] == 3].mean():.2f}\")"),
]  # fmt: skip


def load(folder: Path) -> TaskPool:
    """The benchmark as a pool: what every command and trainer takes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sales.csv").open("w", newline="") as file:
        csv.writer(file).writerows(ROWS)
    table = DataFile.of("sales.csv", folder)
    return TaskPool(
        [
            Task(id=f"shop-{i}", question=question, guidelines=guidelines, answer=answer, files=(table,), level=level,
                 dataset="shop", source="the shop benchmark", licence="CC0-1.0",
                 reference_code=f"import pandas as pd\nt = pd.read_csv('data/sales.csv')\n{code}")
            for i, (question, guidelines, answer, level, code) in enumerate(QUESTIONS)
        ],
        folder,
    )  # fmt: skip


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "shop")
    pool = load(folder / "data")
    pool.save(folder / "tasks.jsonl")
    records = asyncio.run(rollout(plan(pool, ["oracle", "guess"], n=2), pool, AGENTS, folder / "episodes.jsonl"))
    for score in evaluate(records, pool):
        print(f"{score.agent}: pass@1 {score.pass_at[1]:.0%}, pass@2 {score.pass_at[2]:.0%}, {score.failures}")
