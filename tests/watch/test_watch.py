"""The live page, as the command starts it, with a real browser, a real kernel and a scripted model server."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browser import chromium, faults, opened, until
from servers import Answer, ScriptedServer, answered, error, ran

from jupyter_env.watch.uploads import Refused, safe_name

TABLE = "species,mass\nAdelie,3700\nGentoo,5000\n"


def behave(body: dict[str, Any], number: int) -> Answer:
    """An agent whose doing depends on what it is asked."""
    asked = next(message["content"] for message in body["messages"] if message["role"] == "user")
    turn = sum(message["role"] == "assistant" for message in body["messages"])
    if "for ever" in asked:
        return ran("import time\nprint('waiting')\ntime.sleep(50)")
    if "broken" in asked:
        return error(400, "no such thing")
    if "hostile" in asked:
        attack = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
        return answered(attack) if turn else ran(f"print({attack!r})")
    steps = [
        ran("import pandas as pd\ndf = pd.read_csv('data/penguins.csv')\ndf"),
        ran("import matplotlib.pyplot as plt\ndf.mass.plot()\nplt.show()"),
        ran("df['weight']"),
    ]
    return steps[turn]._replace(delay_s=0.3) if turn < 3 else answered("5000")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a page that the command serves."""
    with ScriptedServer(behave) as server:
        command = [sys.executable, "-c", "from jupyter_env.cli import main; main()"]
        command += ["watch", "--model", "tiny", "--base-url", server.url, "--no-browser", "--max-upload-mb", "0.01"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", line)
        assert found, line
        try:
            yield found[0]
        finally:
            process.terminate()
            assert process.wait(timeout=20) is not None
            process.stdout.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def table(tmp_path: Path, name: str = "penguins.csv", text: str = TABLE) -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def ask(page: Any, question: str) -> None:
    page.fill("#question", question)
    page.click("#run")


def test_an_episode_from_question_and_table_to_answer_and_notebook(browser: Any, address: str, tmp_path: Path) -> None:
    with opened(browser, address) as page:
        assert faults(page) == []
        page.set_input_files("#files", table(tmp_path))
        page.wait_for_selector("#uploaded li")
        ask(page, "How heavy is the heaviest?")
        page.wait_for_selector("#cells article")  # live: the first cell is there
        assert page.locator("#result").is_hidden() and page.is_enabled("#stop")
        page.wait_for_selector("#result:visible")
        assert page.inner_text("#result .given") == "5000" and "answered" in page.inner_text("#status")
        assert [page.locator("#cells article h3").nth(n).inner_text() for n in range(3)] == [
            "Turn 1",
            "Turn 2",
            "Turn 3",
        ]
        text = page.inner_text("#cells")
        assert "Gentoo" in text and "KeyError: 'weight'" in text
        assert page.locator("#cells img").evaluate("image => image.naturalWidth") > 100
        assert faults(page) == []
        with page.expect_download() as download:
            page.click("#result a")
        notebook = nbformat.read(download.value.path(), as_version=4)
        assert sum(cell.cell_type == "code" for cell in notebook.cells) == 3
        page.reload()  # it goes on with the episode that the address names
        page.wait_for_selector("#result:visible")
        assert page.inner_text("#result .given") == "5000" and page.locator("#cells article").count() == 3


def test_stop_ends_the_running_cell(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        ask(page, "Wait for ever")
        page.wait_for_selector(".pending")
        began = time.monotonic()
        page.click("#stop")
        page.wait_for_selector("#result:visible")
        assert time.monotonic() - began < 10
        assert "agent stopped" in page.inner_text("#status") and "gave no answer" in page.inner_text("#result")
        assert page.inner_text("#cells .badge") == "stopped" and "time.sleep(50)" in page.inner_text("#cells .code")
        assert '"arguments"' not in page.inner_text("#cells")
        assert page.is_enabled("#run") and page.is_disabled("#stop")


def test_what_goes_wrong_is_said(browser: Any, address: str, tmp_path: Path) -> None:
    with opened(browser, address) as page:
        ask(page, "something broken")
        page.wait_for_selector("#result:visible")
        assert "no such thing" in page.inner_text("#problem")


def test_an_episode_waits_for_all_files_that_are_picked(browser: Any, address: str, tmp_path: Path) -> None:
    held: list[Any] = []
    with opened(browser, address) as page:
        page.route("**/files?*", lambda route: held.append(route))
        page.set_input_files("#files", [table(tmp_path, "first.csv"), table(tmp_path, "second.csv")])
        until(lambda: page.is_disabled("#run") and len(held) == 1)
        page.set_input_files("#files", table(tmp_path, "third.csv"))  # while the first are being sent
        until(lambda: page.is_disabled("#run") and len(held) == 2)

        def all_sent() -> bool:
            while held:
                held.pop().continue_()
            return bool(page.locator("#uploaded li").count() == 3)

        until(all_sent)
        until(lambda: bool(page.is_enabled("#run")))
        assert sorted(page.locator("#uploaded li").all_inner_texts()) == [
            "data/first.csv",
            "data/second.csv",
            "data/third.csv",
        ]
        assert page.is_disabled("#stop")


def test_one_refused_file_of_several_is_named(browser: Any, address: str, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(address)
    page.set_input_files("#files", [table(tmp_path, "large.csv", "x" * 20_000), table(tmp_path, "good.csv")])
    page.wait_for_selector("#uploaded li")
    until(lambda: page.is_enabled("#run"))
    assert "large.csv is larger" in page.inner_text("#problem")
    page.close()


def test_uploads_are_refused_with_words(browser: Any, address: str, tmp_path: Path) -> None:
    context = browser.new_context()  # a refusal is an error in the browser's console
    page = context.new_page()
    page.goto(address)
    page.set_input_files("#files", table(tmp_path, "big.csv", "x" * 20_000))
    until(lambda: "larger than 0.01 MB" in page.inner_text("#problem"))
    page.set_input_files("#files", table(tmp_path, "page.html"))
    until(lambda: "page.html is none of .csv" in page.inner_text("#problem"))
    assert page.locator("#uploaded li").count() == 0
    context.close()


def test_what_the_model_writes_stays_text(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        ask(page, "hostile <img src=x onerror=alert(1)>")
        page.wait_for_selector("#result:visible")
        assert page.title() == "An agent at work" and page.inner_text("#result .given").startswith("<img")
        assert page.locator("#cells img, #result img").count() == 0


LOOKING = """#!{python}
# A browser that holds its caller, as those in a terminal do: it follows the page that it is given.
import json, os, pathlib, re, sys, time, urllib.request
given = sys.argv[1]
path = pathlib.Path(given.removeprefix("file://"))
found = {{"given": given, "modes": [path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777]}}
address = re.search('url=([^"]+)', path.read_text())[1]
found["status"] = urllib.request.urlopen(address, timeout=10).status
pathlib.Path({out!r} + ".part").write_text(json.dumps({{**found, "address": address}}))
os.rename({out!r} + ".part", {out!r})
try:
    while urllib.request.urlopen(address, timeout=10):
        time.sleep(0.1)
except OSError:
    pass
"""


def test_the_browser_is_given_no_secret_and_holds_nothing_up(tmp_path: Path) -> None:
    """Its command line can be read by all users of the machine."""
    out, looking = tmp_path / "found.json", tmp_path / "looking"
    looking.write_text(LOOKING.format(python=sys.executable, out=str(out)))
    looking.chmod(0o755)
    with ScriptedServer(behave) as server:
        command = [sys.executable, "-c", "from jupyter_env.cli import main; main()"]
        command += ["watch", "--model", "tiny", "--base-url", server.url]
        env = {**os.environ, "COLUMNS": "200", "BROWSER": str(looking)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
            try:
                until(out.exists, 30)
            finally:
                process.terminate()
                said = process.communicate(timeout=20)[0]
    found = json.loads(out.read_text())
    assert found["status"] == 200 and found["address"] in said and found["modes"] == [0o700, 0o600]
    token = found["address"].split("/")[3]
    assert len(token) == 32 and token not in found["given"]
    assert not Path(found["given"].removeprefix("file://")).parent.exists()


def request(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    _, _, host, token, _ = address.split("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request(
        method, path.replace("TOKEN", token), body, headers, encode_chunked="Transfer-Encoding" in headers
    )
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def test_nothing_answers_without_the_token_or_to_a_foreign_name(address: str) -> None:
    assert request(address, "GET", "/TOKEN/")[0] == 200
    for path in ("/", "/watch.js", "/x/", "/episodes", "/TOKENx/", "/TOKEN/../watch.js"):
        assert request(address, "GET", path)[0] == 404, path
    assert request(address, "POST", "/episodes", "{}")[0] == 404
    assert request(address, "GET", "/TOKEN/", Host="attacker.example")[0] == 400
    status, _ = request(address, "GET", "/TOKEN/episodes/none/events")
    assert status == 404


def test_names_and_sizes_of_uploads_are_not_trusted(address: str) -> None:
    for given, stored in (("../../etc/x.csv", "x.csv"), ("..%2F.x.csv", "x-2.csv"), ("a%00b%0A.CSV", "a_b_.csv")):
        status, body = request(address, "PUT", f"/TOKEN/files?name={given}", TABLE)
        assert (status, json.loads(body)) == (200, {"name": stored})
    chunks = (b"y" * 1000 for _ in range(50))  # no length is said
    status, body = request(address, "PUT", "/TOKEN/files?name=z.csv", chunks, **{"Transfer-Encoding": "chunked"})
    assert status == 413 and b"larger than" in body
    assert request(address, "PUT", "/TOKEN/files?name=z.csv", b"")[0] == 400
    question = json.dumps({"question": "q", "files": ["../x.csv"]})
    assert request(address, "POST", "/TOKEN/episodes", question)[0] == 404
    for bad in ('{"question": ', '{"question": 3}', '{"question": " "}', '{"question": "q", "answer": "42"}', "\xff"):
        assert request(address, "POST", "/TOKEN/episodes", bad.encode("latin-1"))[0] == 400, bad
    assert request(address, "POST", "/TOKEN/episodes", json.dumps({"question": "q" * 200_000}))[0] == 413


def test_events_after_a_number_that_never_was(address: str) -> None:
    """They end with the episode, and until then the server rests."""
    started = request(address, "POST", "/TOKEN/episodes", json.dumps({"question": "Wait for ever"}))
    events = f"/TOKEN/episodes/{json.loads(started[1])['id']}/events"
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=1)
    connection.request("GET", events.replace("TOKEN", address.split("/")[3]), headers={"Last-Event-ID": "999"})
    response, told = connection.getresponse(), 0
    began = time.monotonic()
    with contextlib.suppress(TimeoutError):
        while time.monotonic() - began < 5:
            told += len(response.read1())
    assert told < 1000  # a word for each event that came
    connection.close()
    assert request(address, "POST", events.replace("/events", "/stop"))[0] == 200
    assert request(address, "GET", events, **{"Last-Event-ID": "999"}) == (200, b"")
    status, body = request(address, "GET", events)
    assert status == 200 and b"event: end" in body


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("größe 1.csv", "größe 1.csv"),
        ("C:\\Users\\me\\t.TSV", "t.tsv"),
        ("....csv", "table.csv"),
        ("a\u202eb.csv", "a_b.csv"),
        ("x" * 300 + ".csv", "x" * 80 + ".csv"),
    ],
)
def test_safe_names(given: str, name: str) -> None:
    assert safe_name(given) == name


@pytest.mark.parametrize("given", ["", "x", ".csv/", "x.exe", "x.csv.sh", "..", "csv"])
def test_other_files_are_refused(given: str) -> None:
    with pytest.raises(Refused):
        safe_name(given)
