"""The report in a real browser: filters, links, keys, comparisons, hostile records, size, and accessibility."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, faults, opened, until
from example_records import Recorder, realistic, stream
from test_html import ATTACK, hostile

from jupyter_env.chat import Usage
from jupyter_env.episode import EpisodeRecord
from jupyter_env.report.html import write_comparison, write_report


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    records = realistic()
    for number, record in enumerate(records):
        record.usage = Usage(prompt_tokens=1000 * number, cached_tokens=400 * number, completion_tokens=300)
        record.model_s = 1.5
    records[3].provenance = "simulated"
    write_report(records, path, "Test run")
    return path.as_uri()


def shown(page: Any) -> int:
    return page.locator("#list li:visible").count()


def linked(page: Any) -> str:
    return page.locator("article.linked h3").inner_text()


def heading(page: Any) -> str:
    return page.locator("#episode h2").inner_text()


def test_filters_and_search(browser: Any, report: str) -> None:
    with opened(browser, report) as page:
        page.wait_for_selector("#episode article")
        assert shown(page) == 20
        page.select_option("#outcome", "=correct")
        assert shown(page) == 10 and page.inner_text("#count") == "10 of 20 episodes"
        page.select_option("#level", "=hard")
        both = shown(page)
        assert 0 < both < 10
        page.select_option("#outcome", "*")
        page.select_option("#level", "*")
        page.select_option("#stop_reason", "=kernel_lost")
        assert shown(page) == 2
        page.select_option("#stop_reason", "*")
        page.select_option("#status", "=timeout")
        assert shown(page) == 2
        page.select_option("#status", "*")
        page.select_option("#provenance", "=simulated")
        assert shown(page) == 1
        page.locator("#list li:visible a").click()
        until(lambda: page.locator("#episode .simulated").count() == 1)
        page.select_option("#provenance", "*")
        page.fill("#search", "BYTEARRAY(10**12)")
        until(lambda: page.inner_text("#count") == "2 of 20 episodes")
        page.fill("#search", "nothing holds this")
        until(lambda: page.inner_text("#count").startswith("No episode"))


def test_links_lead_to_an_episode_and_a_cell(browser: Any, report: str) -> None:
    record = realistic()[4]
    with opened(browser, f"{report}#episode={record.id}") as page:
        page.wait_for_selector("#episode article")
        assert heading(page) == record.task_id and "the message holds no call" in page.inner_text("#episode")
        first = realistic()[0].id
        page.goto(f"{report}#episode={first}&turn=4")
        page.wait_for_selector("article.linked")
        assert linked(page) == "Turn 4"
        box = page.locator("article.linked").bounding_box()
        assert -1 < box["y"] < 400
        page.locator("article[data-turn='2'] h3 a").click()
        until(lambda: linked(page) == "Turn 2")
        assert page.url.endswith(f"#episode={first}&turn=2")
        page.go_back()
        until(lambda: linked(page) == "Turn 4")
        assert page.locator("#episode img").evaluate("image => image.naturalWidth") == 560
        assert page.locator("#episode details:has-text('Reasoning')").first.get_attribute("open") is None
        assert page.locator("#episode .bar").count() >= 2


def test_the_keyboard_is_enough(browser: Any, report: str) -> None:
    ids = [record.task_id for record in realistic()]
    with opened(browser, report) as page:
        page.wait_for_selector("#episode article")
        page.keyboard.press("j")
        until(lambda: heading(page) == ids[1])
        page.keyboard.press("k")
        until(lambda: heading(page) == ids[0])
        page.keyboard.press("n")
        page.keyboard.press("n")
        assert linked(page) == "Turn 2"
        page.keyboard.press("/")
        page.keyboard.type("penguins.cleaning")
        until(lambda: page.inner_text("#count") == "5 of 20 episodes")
        page.keyboard.press("Tab")
        page.keyboard.press("Escape")
        page.locator("#episode h2").click()
        page.keyboard.press("g")
        page.wait_for_selector("#beside .beside")


def test_the_rollouts_of_a_task_show_where_they_parted(browser: Any, tmp_path: Path) -> None:
    def rollout(seed: int, third: str, answer: str) -> EpisodeRecord:
        recorder = Recorder(0, seed=seed).cell("import pandas as pd", stream("")).cell("df.head()", stream("a\n"))
        return recorder.cell(third, stream(f"{third} gave\n")).answer(answer)

    records = [rollout(0, "df.mean()", "77.89"), rollout(1, "df.mean()", "77.89"), rollout(2, "df.sum()", "3")]
    write_report(records, tmp_path / "report.html", "Group")
    with opened(browser, (tmp_path / "report.html").as_uri() + f"#task={records[0].task_id}") as page:
        page.wait_for_selector("#beside .beside")
        text = page.inner_text("#beside")
        assert "They do the same up to turn 2 and part at turn 3: 2 ways (2 + 1)." in text
        assert page.locator("#beside .alone").count() == 2  # the third turn and the answer of the one that left
        assert "df.sum() gave" in text
        page.locator("#beside a:has-text('seed 2')").click()
        page.wait_for_selector("#episode article")
        assert page.locator("#episode dd:has-text('3')").count() > 0
        assert faults(page) == []


def test_two_runs_task_by_task(browser: Any, tmp_path: Path) -> None:
    before, after = realistic(), copy.deepcopy(realistic())
    changed = next(record for record in after if record.verdict is None and record.stop_reason == "turn_limit")
    changed.verdict, changed.stop_reason = next(record.verdict for record in after if record.verdict), "answered"
    write_comparison({"before": before, "after": after}, tmp_path / "report.html")
    with opened(browser, (tmp_path / "report.html").as_uri() + "#runs") as page:
        page.wait_for_selector("#beside table")
        assert "1 task better, 0 tasks worse" in page.inner_text("#beside")
        row = page.locator("#beside tbody tr").first
        assert changed.task_id in row.inner_text() and "+" in row.inner_text()
        assert faults(page) == []
        row.locator("a").click()
        page.wait_for_selector("#beside .beside")
        assert "before · " in page.inner_text("#beside") and "after · " in page.inner_text("#beside")
        page.goto((tmp_path / "report.html").as_uri() + "#")
        page.wait_for_selector("#episode article")
        page.select_option("#run", "=after")
        assert shown(page) == 20


def test_hostile_records_run_nothing(browser: Any, tmp_path: Path) -> None:
    record = hostile()
    record.question = f"Which one is it? {ATTACK}"
    record.id = "a&turn=b%20#+ü"
    twin = copy.deepcopy(record)
    twin.id = "twin"
    write_report([record, twin, *realistic()], tmp_path / "report.html", "Test run")
    with opened(browser, (tmp_path / "report.html").as_uri()) as page:
        page.wait_for_selector("#episode article")
        assert "Which one is it? </script>" in page.inner_text("#episode") and page.title() == "Test run"
        assert page.locator("#episode img, #episode script, #episode svg").count() == 0
        page.keyboard.press("g")
        page.wait_for_selector("#beside .beside")
        assert page.locator("#beside img, #beside script").count() == 0
        page.goto((tmp_path / "report.html").as_uri() + page.locator("#list a").first.get_attribute("href") + "&turn=1")
        page.wait_for_selector("article.linked")
        assert page.title() == "Test run"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_it_is_accessible_in_both_schemes_and_on_a_phone(browser: Any, report: str, scheme: str, width: int) -> None:
    with opened(browser, report, color_scheme=scheme, viewport={"width": width, "height": 850}) as page:
        page.wait_for_selector("#episode article")
        assert faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.goto(f"{report}#task={realistic()[0].task_id}")
        page.wait_for_selector("#beside .beside")
        assert faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def first_use_s(page: Any, path: Path) -> float:
    page.goto("about:blank")
    began = time.perf_counter()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("#episode article")
    page.select_option("#outcome", "=correct")
    until(lambda: page.inner_text("#count") == "2,500 of 5,000 episodes")
    return time.perf_counter() - began


def test_5000_episodes_are_interactive_in_two_seconds(browser: Any, tmp_path: Path) -> None:
    base = realistic()
    records = []
    for number in range(5_000):
        record = copy.copy(base[number % 20])
        record.id = f"episode-{number}"
        record.task_id = f"{record.task_id}-{number // 8}"
        records.append(record)
    path = tmp_path / "report.html"
    write_report(records, path, "5,000 episodes")
    with opened(browser, "about:blank") as page:
        took_s = min(first_use_s(page, path), first_use_s(page, path))  # once may be while the machine does other work
        page.wait_for_load_state()
        began = time.perf_counter()
        page.fill("#search", "bytearray")
        until(lambda: page.inner_text("#count").startswith("No episode"))
        search_s = time.perf_counter() - began
        print(
            f"{path.stat().st_size / 1e6:.1f} MB; first use after {took_s:.2f} s, first search after {search_s:.2f} s"
        )
        assert re.search("life expectancy|Which species|closing prices|Which airport", page.inner_text("#episode"))
    assert took_s < 2.0
