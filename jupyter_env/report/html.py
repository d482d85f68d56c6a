"""One offline HTML page over thousands of episodes: pass rates, each episode as a notebook would show it, rollouts of a
task beside each other, and two runs.

The page is `report.html` beside this file, with its style and scripts, an index of the episodes as JSON, and the
episodes themselves compressed, to be unpacked as they are opened. It fetches nothing.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

from jupyter_env.episode import EpisodeRecord
from jupyter_env.report.shown import outcome, shown_episode

CHUNK_BYTES = 2_000_000
"""Of episodes that are packed together, about, before compression: a chunk is unpacked in some ten milliseconds."""
MAX_IMAGE_BYTES = 200_000_000
"""Of all images of a page, in base64: browsers open no larger page well. Those beyond are named and not shown."""
_SEARCHED_CHARS = 20_000
"""Of an episode's code, for the search."""


def write_report(records: Sequence[EpisodeRecord], path: Path, title: str) -> None:
    """Write one self-contained HTML file about the episodes of a run, listed in their order."""
    count = f"{len(records):,} episode{'s' * (len(records) != 1)}" if records else "No episodes were recorded."
    _write([("", record) for record in records], path, title, count)


def write_comparison(runs: Mapping[str, Sequence[EpisodeRecord]], path: Path) -> None:
    """Write one such file about two runs or more, by their names."""
    count = ", ".join(f"{len(records):,} episodes of {name}" for name, records in runs.items())
    listed = [(name, record) for name, records in runs.items() for record in records]
    _write(listed, path, " and ".join(runs), count)


def _write(listed: Sequence[tuple[str, EpisodeRecord]], path: Path, title: str, count: str) -> None:
    index: list[dict[str, Any]] = []
    texts: list[str] = []
    values = {
        "TITLE": escape(title),
        "COUNT": escape(count),
        "STYLE": _part("page.css"),
        "SCRIPT": "\n".join(map(_part, ("episode.js", "compare.js", "report.js"))),
        "CHUNKS": "\n".join(_chunks(listed, index, texts)),
        "INDEX": _embedded(index),
    }
    values["CHUNKS"] += "\n" + _packed("texts", json.dumps(texts))
    # In one pass: a placeholder's name within a value stays what it is.
    page = re.sub("%%(TITLE|COUNT|STYLE|SCRIPT|CHUNKS|INDEX)%%", lambda found: values[found[1]], _part("report.html"))
    path.write_text(page, encoding="utf-8", errors="replace")


def _chunks(
    listed: Sequence[tuple[str, EpisodeRecord]], index: list[dict[str, Any]], texts: list[str]
) -> Iterator[str]:
    """The packed episodes; what the index and the search need of each is added to the two lists."""
    encoded: list[str] = []
    size = number = images = 0
    for run, record in listed:
        shown = shown_episode(record)
        images += _without_images(shown, max(MAX_IMAGE_BYTES - images, 0))
        text = json.dumps(shown, allow_nan=False, separators=(",", ":"))
        if encoded and size + len(text) > CHUNK_BYTES:
            yield _packed(f"chunk-{number}", f"[{','.join(encoded)}]")
            encoded, size, number = [], 0, number + 1
        index.append(_index_row(run, record, number, len(encoded)))
        texts.append(_searched(shown))
        encoded.append(text)
        size += len(text)
    if encoded:
        yield _packed(f"chunk-{number}", f"[{','.join(encoded)}]")


def _without_images(shown: dict[str, Any], room: int) -> int:
    """Make notes of the images that there is no room for; how many bytes those take that stay."""
    taken = 0
    for step in shown["steps"]:
        for output in step.get("outputs", ()):
            if output["kind"] != "image":
                continue
            if taken + len(output["base64"]) <= room:
                taken += len(output["base64"])
                continue
            note = f"{output['text']}: left out, for the images of this page take over {MAX_IMAGE_BYTES / 1e6:.0f} MB"
            output.clear()
            output.update(kind="note", text=note)
    return taken


def _index_row(run: str, record: EpisodeRecord, chunk: int, place: int) -> dict[str, Any]:
    usage = record.usage
    return {
        "key": f"{run}/{record.id}" if run else record.id,
        "run": run,
        "task_id": record.task_id,
        "agent": record.agent,
        "level": record.level,
        "seed": record.seed,
        "provenance": record.provenance,
        "outcome": outcome(record),
        "stop_reason": record.stop_reason or "running",
        "statuses": sorted(
            {cell.status for cell in record.cells} | ({"malformed"} if record.malformed_turns else set())
        ),
        "turns": record.turns,
        "tokens": [usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens],
        "model_s": record.model_s,
        "cell_s": record.cell_s,
        "duration_s": record.duration_s,
        "chunk": chunk,
        "place": place,
    }


def _searched(shown: Mapping[str, Any]) -> str:
    code = "\n".join(step["code"] for step in shown["steps"])[:_SEARCHED_CHARS]
    return "\n".join((shown["task_id"], shown["question"], shown["guidelines"], shown["answer"] or "", code)).lower()


def _part(name: str) -> str:
    return resource_files("jupyter_env").joinpath(f"report/{name}").read_text(encoding="utf-8")


def _packed(name: str, text: str) -> str:
    # No time in it: equal runs give equal pages.
    packed = base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode("ascii")
    return f'<script type="application/gzip" id="{name}">{packed}</script>'


def _embedded(data: Any) -> str:
    """JSON in ASCII (so U+2028 and U+2029 are escaped too) that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)
