"""The report: one page that shows every record, fetches nothing and runs nothing of what a record holds."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from example_records import Recorder, display, error, png, realistic, stream
from typer.testing import CliRunner

from jupyter_env.action import ExecuteCode
from jupyter_env.cli import app
from jupyter_env.episode import EpisodeRecord, StopReason
from jupyter_env.report.html import write_comparison, write_report
from jupyter_env.runfile import write_records
from jupyter_env.task import TaskError

ATTACK = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<!--<script>\u2028\u2029&lt;b&gt; ]]> %%DATA%% \\u003c"
)


class Page(HTMLParser):
    """The tags of a page, and the texts of its script elements by their ids."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.texts: dict[str, str] = {}
        self.title = ""
        self._within = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._within = dict(attrs).get("id") or tag

    def handle_data(self, data: str) -> None:
        self.texts[self._within] = self.texts.get(self._within, "") + data
        if self._within == "title":
            self.title += data

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def unpacked(self, name: str) -> Any:
        return json.loads(gzip.decompress(base64.b64decode(self.texts[name])))

    @property
    def index(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.texts["index"])
        return rows

    @property
    def data(self) -> list[dict[str, Any]]:
        return [self.unpacked(f"chunk-{row['chunk']}")[row["place"]] for row in self.index]


def written(tmp_path: Path, records: list[EpisodeRecord], title: str = "Test run") -> Page:
    write_report(records, tmp_path / "report.html", title)
    return Page(tmp_path / "report.html")


def hostile() -> EpisodeRecord:
    names = ("id", "task_id", "question", "guidelines", "level", "dataset", "provenance", "agent")
    fields: dict[str, Any] = {**dict.fromkeys(names, ATTACK), "files": [ATTACK]}
    recorder = Recorder(**fields)
    recorder.cell(
        ATTACK,
        stream(ATTACK),
        stream(ATTACK, name=ATTACK),
        display(text_html=ATTACK, text_plain=ATTACK),
        display(text_html=ATTACK),
        display(image_svg=f"<svg onload='x'>{ATTACK}</svg>"),
        display(image_png=ATTACK),
        display(image_jpeg='x" onerror="document.title=1'),
        error([ATTACK], ATTACK, ATTACK),
        comment=ATTACK,
        reasoning=ATTACK,
    )
    recorder.malformed(ATTACK, ATTACK)
    record = recorder.answer(ATTACK, reasoning=ATTACK)
    record.expected = record.error = ATTACK
    return record


def test_every_record_is_on_the_page_with_its_outcome(tmp_path: Path) -> None:
    records = realistic()
    page = written(tmp_path, records)
    assert [episode["id"] for episode in page.data] == [record.id for record in records]
    assert [episode["question"] for episode in page.data] == [record.question for record in records]
    counts = Counter(episode["outcome"] for episode in page.data)
    assert counts == {"correct": 10, "wrong": 5, "no answer": 4, "machine failure": 1}
    assert "20 episodes" in page.source


def test_steps_are_the_turns_in_order(tmp_path: Path) -> None:
    steps = written(tmp_path, realistic()[:1]).data[0]["steps"]
    assert [step["turn"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step["kind"] for step in steps] == ["cell", "cell", "malformed", "cell", "cell", "answer"]
    assert steps[0]["reasoning"].startswith("I need the rows")
    assert "<tool_call>" in steps[2]["prose"]
    assert steps[2]["observation"].startswith("Error: the text in <tool_call>")


def test_outputs_are_text_without_terminal_codes_and_images(tmp_path: Path) -> None:
    steps = written(tmp_path, realistic()[:1]).data[0]["steps"]
    table, failed, figure, long = (steps[turn]["outputs"] for turn in (0, 1, 3, 4))
    assert [output["kind"] for output in table] == ["stdout", "result"]
    assert "Albania" in table[1]["text"] and "<table>" not in table[1]["text"]
    assert failed[0]["kind"] == "error" and "\x1b" not in failed[0]["text"]
    assert failed[0]["text"].endswith("KeyError: 'life_exp'")
    assert figure[1] == {"kind": "image", "mime": "image/png", "base64": png().strip(), "text": "[image/png 560x320]"}
    assert long[0]["text"].count("\n") == 599  # whole, though the model saw it shortened
    assert "lines shown" in steps[4]["observation"]


def test_an_image_that_is_not_base64_is_a_note(tmp_path: Path) -> None:
    record = Recorder().cell("x", display(image_png='AAAA" onerror="x'), display(image_svg="<svg/>")).answer("1")
    outputs = written(tmp_path, [record]).data[0]["steps"][0]["outputs"]
    assert [output["kind"] for output in outputs] == ["note", "note"]
    assert "onerror" not in json.dumps(outputs) and "<svg" not in json.dumps(outputs)


def test_a_cell_that_the_machine_never_finished(tmp_path: Path) -> None:
    recorder = Recorder().cell("print(1)", stream("1\n")).cell("print(2)")
    recorder.record.cells.pop()
    recorder.record.messages.pop()
    (episode,) = written(tmp_path, [recorder.stop("infrastructure_error", "the disk is full")]).data
    assert episode["outcome"] == "machine failure" and episode["error"] == "the disk is full"
    assert episode["steps"][1]["kind"] == "lost" and episode["steps"][1]["code"] == "print(2)"


@pytest.mark.parametrize("reason", ["agent_stopped", "time_limit"])
def test_a_cell_that_was_running_when_the_episode_was_stopped(tmp_path: Path, reason: StopReason) -> None:
    recorder = Recorder().malformed("I think.", "Error: the message holds no call.")
    recorder._say(ExecuteCode(code="print(2)"), "")
    recorder.stop(reason)
    steps = written(tmp_path, [recorder.record]).data[0]["steps"]
    assert [step["kind"] for step in steps] == ["malformed", "stopped"] and steps[1]["code"] == "print(2)"


def test_fenced_code_is_not_shown_twice(tmp_path: Path) -> None:
    record = Recorder().cell("print(1)", stream("1\n")).answer("1")
    record.messages[2] = {"role": "assistant", "content": "I print.\n```python\nprint(1)\n```"}
    step = written(tmp_path, [record]).data[0]["steps"][0]
    assert step["prose"] == "I print." and step["code"] == "print(1)"


@pytest.mark.parametrize("content", [None, 7, ["a", {"type": "text", "text": "b"}, {}], {"text": 1}, "half \ud800"])
def test_no_message_content_breaks_the_page(tmp_path: Path, content: Any) -> None:
    record = Recorder().malformed("x", "y").answer("1")
    record.messages[2] = {"role": "assistant", "content": content, "tool_calls": [{"function": content}]}
    record.id = "half \ud800"
    assert len(written(tmp_path, [record], title="half \ud800").data) == 1


def test_hostile_records_stay_text(tmp_path: Path) -> None:
    plain = written(tmp_path, realistic()[:1])
    page = written(tmp_path, [hostile()], title=ATTACK)
    assert page.tags == plain.tags
    assert page.tags["script"] == 4 and page.tags["img"] == 0
    assert not re.search("[<>&\u2028\u2029]", page.texts["index"])
    assert page.title == ATTACK
    assert page.data[0]["question"] == ATTACK and page.data[0]["steps"][0]["code"] == ATTACK
    assert not [output for output in page.data[0]["steps"][0]["outputs"] if output["kind"] == "image"]


def test_nothing_is_fetched_or_parsed_as_markup(tmp_path: Path) -> None:
    source = written(tmp_path, []).source
    assert not re.search(r"https?://|\bsrc=|<link|@import|url\(|fetch\(|innerHTML|insertAdjacent|eval\(", source)
    assert "default-src 'none'" in source


def test_no_records_give_a_page_that_says_so(tmp_path: Path) -> None:
    page = written(tmp_path, [])
    assert page.data == [] and "No episodes were recorded." in page.source


def test_ends_before_the_first_turn_and_answers_without_a_verdict_are_shown(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    answer = {"role": "assistant", "content": "final_answer: 4"}
    records = [
        EpisodeRecord(id="a", task_id="a", question="q", messages=asked, stop_reason="context_limit", reward=0.0),
        EpisodeRecord(id="b", task_id="b", question="q", messages=[*asked, answer], stop_reason="answered", answer="4"),
    ]
    page = written(tmp_path, records)
    assert [episode["outcome"] for episode in page.data] == ["no answer", "not judged"]
    assert [len(episode["steps"]) for episode in page.data] == [0, 1]


def test_episodes_are_packed_in_chunks_and_found_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jupyter_env.report.html.CHUNK_BYTES", 60_000)
    records = realistic()
    page = written(tmp_path, records)
    assert max(row["chunk"] for row in page.index) > 2
    assert [episode["id"] for episode in page.data] == [record.id for record in records]
    assert len(page.unpacked("texts")) == 20 and "average(g[" in page.unpacked("texts")[0]
    first = page.source
    assert written(tmp_path, records).source == first  # the same run, the same bytes


def test_images_beyond_the_page_s_room_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jupyter_env.report.html.MAX_IMAGE_BYTES", len(png()) + 10)
    data = written(tmp_path, [realistic()[0], realistic()[0]]).data
    kinds = [output for episode in data for step in episode["steps"] for output in step.get("outputs", [])]
    assert [output["kind"] for output in kinds].count("image") == 1
    assert any("left out" in output["text"] for output in kinds)


def test_two_runs_share_a_page(tmp_path: Path) -> None:
    write_comparison({"before": realistic()[:4], "after": realistic()[:3]}, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert [row["run"] for row in page.index] == ["before"] * 4 + ["after"] * 3
    assert len({row["key"] for row in page.index}) == 7 and page.title == "before and after"


def test_the_command_shows_one_run_or_two(tmp_path: Path) -> None:
    for name in ("before", "after"):
        write_records(realistic()[:2], tmp_path / name / "episodes.jsonl")
    runs = [str(tmp_path / "before"), str(tmp_path / "after" / "episodes.jsonl")]
    assert CliRunner().invoke(app, ["view", runs[0], "--no-browser"]).exit_code == 0
    assert Page(tmp_path / "before" / "report.html").title == "before"
    assert CliRunner().invoke(app, ["view", *runs, "--no-browser"]).exit_code == 0
    assert Page(tmp_path / "before" / "report-with-after.html").title == "before and after"
    with pytest.raises(TaskError, match="both runs are named before"):
        CliRunner().invoke(app, ["view", runs[0], runs[0], "--no-browser"], catch_exceptions=False)
