"""A real headless Chromium for the tests of pages, driven by Playwright; tests that need it skip where it is absent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

OFF = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OFF))
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """A page; at the end nothing may have gone wrong in its console, and nothing may have been fetched elsewhere."""
    context = browser.new_context(**options)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    origin = address.partition("#")[0].partition("?")[0].rpartition("/")[0]
    page.on(
        "request", lambda request: None if request.url.startswith((origin, "data:")) else problems.append(request.url)
    )
    page.set_default_timeout(15_000)
    page.goto(address)
    try:
        yield page
        assert problems == []
    finally:
        context.close()


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Wait for a condition; the pages' own policy forbids Playwright's way of waiting for an expression."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.02)


def faults(page: Any) -> list[str]:
    """What axe-core finds that is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['help']}: {node['target']} {node.get('failureSummary', '')}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
