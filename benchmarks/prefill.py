"""Prefill tokens a notebook, side by side: the published order of calls, its filters on, and the pipeline.

    pip install tiktoken && pip install --no-deps dashscope      # Qwen's real tokenizer ships in it
    python -m benchmarks.prefill --notebooks ../shared/data/notebooks

What is counted is what a server computes: the prompt's tokens less those of the longest prefix that its cache holds
(blocks of 16, the oldest leave first, room as the recipe says). The pipeline's prompts are those that it really sends,
in the order in which they come: it runs against a server of this process, whose replies are made up, but such that
every notebook passes that is to, and every question is read again and tried blind. Simplified in favour of the
published order: its own prompts and the check that its authors describe but did not publish cost nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import statistics
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import xxhash
from rich.console import Console
from rich.table import Table

from jupyter_env.chat import render
from pipeline.excerpt import estimate_tokens
from pipeline.models import ModelSettings
from pipeline.notebook import FullNotebook, NotebookError, joined, parse_full
from pipeline.parts import read_rows
from pipeline.plan import Options, jobs
from pipeline.recipe import Recipe
from pipeline.run import prepare
from pipeline.run_folder import RunFolder

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from servers import Answer, ScriptedServer, completion

Tokenize = Callable[[str], list[int]]


def qwen_tokenizer() -> Tokenize:
    """The tokenizer of Qwen 2 and 3: the ranks as dashscope ships them, the pattern of Qwen's own code."""
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    found = importlib.util.find_spec("dashscope")
    if found is None or not found.submodule_search_locations:
        sys.exit("the tokenizer's file is in the package dashscope: pip install --no-deps dashscope")
    ranks = load_tiktoken_bpe(f"{found.submodule_search_locations[0]}/resources/qwen.tiktoken")
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    pattern = words + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    encoding = tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: encoding.encode(text, disallowed_special=())


class PrefixCache:
    """What vLLM's prefix cache would hold: blocks known by all that came before them."""

    def __init__(self, tokens: int, block: int = 16) -> None:
        self._room, self._block = tokens // block, block
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def prefill(self, prompt: list[int]) -> int:
        """How many tokens of the prompt must be computed; they are in the cache afterwards."""
        hits, missed, before = 0, False, 0
        for start in range(0, len(prompt) - len(prompt) % self._block, self._block):
            before = xxhash.xxh3_64_intdigest(repr((before, prompt[start : start + self._block])))
            missed = missed or before not in self._blocks
            hits += not missed
            self._blocks[before] = None
            self._blocks.move_to_end(before)
        while len(self._blocks) > self._room:
            self._blocks.popitem(last=False)
        return len(prompt) - min(hits * self._block, len(prompt) - 1)  # the last token is always computed


def published_text(notebook: FullNotebook) -> str:
    """A notebook as the published pipeline renders it: tags, outputs cut at 5,000 characters each, tracebacks whole."""
    parts = []
    for number, cell in enumerate(notebook.cells, start=1):
        source = joined(cell.source)
        if cell.cell_type == "markdown":
            text = re.sub(r"data:image/[^;]+;base64,[A-Za-z0-9+/=\s]+", "[IMAGE_PLACEHOLDER]", source)
            parts.append(f"<markdown_cell>\n<id:cell_{number}>\n{text}\n</markdown_cell>")
        elif cell.cell_type == "code":
            parts.append(f"<python_cell>\n<id:cell_{number}>\n{source}\n</python_cell>")
            shown = "\n".join(filter(None, map(_published_output, cell.outputs)))
            if shown:
                parts.append(f"<output_cell>\n<id:cell_{number}>\n{shown}\n</output_cell>")
    return "\n".join(line for part in parts for line in part.split("\n") if line.strip())


def _published_output(output: dict[str, Any]) -> str:
    if output.get("output_type") == "error":
        return "\n".join(map(str, output.get("traceback", [])))
    text = output.get("text", "") if output.get("output_type") == "stream" else output.get("data", {}).get("text/plain")
    text = "".join(map(str, text)) if isinstance(text, list) else str(text or "")
    return text if len(text) <= 5000 else text[:5000] + "\n[Output truncated at 5000 characters]"


def made_up(passing: Callable[[str], bool]) -> Callable[[dict[str, Any], int], Answer]:
    """Replies that let every notebook pass that is to, with five questions that hold through all cheap checks."""

    def behave(body: dict[str, Any], number: int) -> Answer:
        text = body["messages"][-1]["content"]
        reply: Any = {"reasoning": "x", "answer": "unknown"}
        if "\nTask: judge the notebook" in text:
            score = 5 if passing(text.split()[1]) else 2
            kinds = {"is_data_analysis": True, "uses_its_tables": True, "trains_language_models": False}
            reply = {"justification": "x", "educational_score": score, **kinds}
        elif "\nTask: write up to" in text:
            reply = {"questions": _drafts(text)}
        elif "\nTask: answer this question" in text:
            asked = text.rpartition("Question: ")[2].split("\n")[0]
            reply = {"reasoning": "x", "answerable": True, "ambiguous": False, "answer": asked.split("'")[-2]}
        return completion(json.dumps(reply))

    return behave


def _drafts(text: str) -> list[dict[str, Any]]:
    found = []
    for match in re.finditer(r"\n\[cell (\d+) output\]\n`{3,}\n(.*?)\n`{3,}", text, re.DOTALL):
        for word in re.findall(r"\b[A-Za-z]{3,}\b", match[2])[:5]:
            found.append((int(match[1]), word))
    code = 'import pandas as pd\nprint(pd.read_csv("data/x").groupby("a").b.mean().sort_values().index[0])'
    form = {"reasoning": "x", "guidelines": "Give the word.", "kind": "text", "decimals": None, "unit": ""}
    return [
        {
            **form,
            "question": f"Which group number {number} of the table is first when sorted by its mean, is it '{word}'?",
            "answer": [word],
            "ordered": True,
            "evidence_cell": cell,
            "evidence": word,
            "level": "hard",
            "code": code,
        }
        for number, (cell, word) in enumerate(found[:5])
    ]


def run_pipeline(notebooks: Path, work: Path, passing: Callable[[str], bool]) -> tuple[RunFolder, list[dict[str, Any]]]:
    """The pipeline up to the questions, with notebooks whose tables are not here kept; and what it asked."""
    with ScriptedServer(made_up(passing)) as server:
        model = ModelSettings(name="made-up", endpoints=(server.url,))
        recipe = Recipe(tasks=1, workers=1, asker=model, missing_data="keep")
        folder, options = RunFolder(work / "run"), Options(inputs=str(notebooks), data=str(work / "none"))
        prepare(folder, options, recipe)
        for job in jobs(folder, options, recipe, "ask"):
            for step in job.steps:
                step.run(None, 0, 1)
        return folder, server.requests


def compare(notebooks: Path, share: float, tokenize: Tokenize) -> list[dict[str, Any]]:
    """The three ways, where so large a share of what the rules let through earns the score."""
    passing = lambda mark: int(mark, 16) % 1000 < 1000 * share  # noqa: E731
    with tempfile.TemporaryDirectory() as work:
        folder, requests = run_pipeline(notebooks, Path(work), passing)
        kept = [row["id"] for row in read_rows(folder.all_parts("near"), ["id"])]
        survivors = {row["id"] for row in read_rows(folder.all_parts("ask"), ["id"])}
        scored = folder.tally("ask").items
    sizes = {name: len(tokenize(published_text(parse_full((notebooks / name).read_bytes())))) for name in kept}
    everything, passed = sum(sizes.values()), sum(sizes[name] for name in survivors)
    settings = ModelSettings()
    cache = PrefixCache(settings.kv_cache_bytes // settings.kv_bytes_per_token)
    prompts = [tokenize(render(body["messages"], add_generation_prompt=True)) for body in requests]
    ours, sent = sum(map(cache.prefill, prompts)), sum(map(len, prompts))
    n, asked_about = len(kept), len(survivors)
    rows = [
        {"way": "published order, as its main.py runs it", "calls": 4 * n, "prefill": 4 * everything},
        {
            "way": "published funnel, its filters on",
            "calls": n + 3 * len(survivors),
            "prefill": everything + 3 * passed,
        },
        {"way": "pipeline, without a prefix cache", "calls": len(prompts), "prefill": sent},
        {"way": "pipeline", "calls": len(prompts), "prefill": ours},
    ]
    for row in rows:
        row |= {"a notebook": row["prefill"] / n, "times the pipeline": row["prefill"] / ours}
        row |= {"share": share, "notebooks": n, "scored": scored, "asked about": asked_about}
    return rows


def estimate_error(notebooks: Path, tokenize: Tokenize) -> dict[str, float]:
    """How far `estimate_tokens` is off: estimate by truth."""
    ratios = []
    for path in sorted(notebooks.glob("*.ipynb")):
        try:
            text = published_text(parse_full(path.read_bytes()))
        except NotebookError:
            continue
        if len(text) > 1000:
            ratios.append(estimate_tokens(text) / len(tokenize(text)))
    cut = statistics.quantiles(ratios, n=20)
    return {"5%": cut[0], "median": statistics.median(ratios), "95%": cut[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebooks", type=Path, default=Path("../shared/data/notebooks"))
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.15])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    tokenize = qwen_tokenizer()
    rows = [row for share in given.shares for row in compare(given.notebooks, share, tokenize)]
    error = estimate_error(given.notebooks, tokenize)
    if given.json:
        print(msgspec.json.format(msgspec.json.encode({"rows": rows, "estimate_by_truth": error}), indent=1).decode())
        return
    table = Table(title="prefill tokens, Qwen's tokenizer")
    columns = (
        "share",
        "way",
        "notebooks",
        "scored",
        "asked about",
        "calls",
        "prefill",
        "a notebook",
        "times the pipeline",
    )
    for name in columns:
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in rows:
        table.add_row(*(_shown(name, row[name]) for name in columns))
    console = Console(width=170)
    console.print(table)
    console.print("estimate_tokens by truth: " + ", ".join(f"{name} {value:.2f}" for name, value in error.items()))


def _shown(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0%}" if name == "share" else f"{value:.1f}" if name.startswith("times") else f"{value:,.0f}"


if __name__ == "__main__":
    main()
