"""The pictures of docs/report.md: `python tests/screenshots.py`, of a real run and of a scripted model's episode."""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from browser import chromium
from PIL import Image
from servers import Answer, ScriptedServer, answered, completion

from jupyter_env import TaskPool
from jupyter_env.interpreters import make_kernel
from jupyter_env.models.server import ServerModel
from jupyter_env.report.html import write_comparison, write_report
from jupyter_env.rollout import plan, rollout
from jupyter_env.scripted import AGENTS
from jupyter_env.watch.server import Watch

IMAGES = Path(__file__).parents[1] / "docs" / "images"
CELLS = (
    ("I look at the table first.", "import pandas as pd\n\ndf = pd.read_csv('data/penguins.csv')\ndf.head()"),
    (
        "A figure shows whether the species differ.",
        "import matplotlib.pyplot as plt\n\ndf.groupby('species').mass.mean().plot.barh(figsize=(5, 1.8))\nplt.show()",
    ),
)


def shoot(page: Any, name: str) -> None:
    """Save what is seen, in 96 colours."""
    IMAGES.mkdir(exist_ok=True)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(96)
    picture.save(IMAGES / f"{name}.png", optimize=True)


def reports(folder: Path) -> tuple[Path, Path]:
    pool = TaskPool.procedural(30, seed=0)
    jobs = plan(pool, ["oracle", "peek", "guess"], 2)
    records = asyncio.run(rollout(jobs, pool, AGENTS, folder / "episodes.jsonl"))
    write_report(records, folder / "report.html", "demo")
    runs = {name: [record for record in records if record.agent == name] for name in ("guess", "peek")}
    write_comparison(runs, folder / "two.html")
    return folder / "report.html", folder / "two.html"


def behave(body: dict[str, Any], number: int) -> Answer:
    turn = sum(message["role"] == "assistant" for message in body["messages"])
    if turn == len(CELLS):
        return answered("Gentoo")
    comment, code = CELLS[turn]
    arguments = json.dumps({"code": code, "comment": comment})
    function = {"name": "execute_code", "arguments": arguments}
    return completion(calls=[{"id": "c", "type": "function", "function": function}], finish="tool_calls")


def watch_page(browser: Any, folder: Path) -> None:
    table = folder / "penguins.csv"
    rows = [("Adelie", 3700), ("Chinstrap", 3730), ("Gentoo", 5080), ("Adelie", 3650), ("Gentoo", 5000)]
    table.write_text("species,mass\n" + "".join(f"{species},{mass}\n" for species, mass in rows))
    with ScriptedServer(behave) as model_server:
        watch = Watch(ServerModel("tiny", model_server.url), make_kernel)
        server = uvicorn.Server(uvicorn.Config(watch.app, port=0, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        page = browser.new_page(viewport={"width": 1000, "height": 1150})
        page.goto(f"http://127.0.0.1:{port}/{watch.token}/")
        page.set_input_files("#files", str(table))
        page.wait_for_selector("#uploaded li")
        page.fill("#question", "Which species is the heaviest on average?")
        page.click("#run")
        page.wait_for_selector("#result:visible")
        shoot(page, "watch")
        page.close()
        server.should_exit = True
        thread.join()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        take(Path(folder), *reports(Path(folder)))


def take(folder: Path, report: Path, two: Path) -> None:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(report.as_uri())
        page.wait_for_selector("#episode article")
        shoot(page, "report")
        page.keyboard.press("g")
        page.wait_for_selector("#beside .beside")
        shoot(page, "rollouts")
        page.goto(two.as_uri() + "#runs")
        page.wait_for_selector("#beside table")
        page.set_viewport_size({"width": 1280, "height": 560})
        shoot(page, "runs")
        phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        phone.goto(report.as_uri())
        phone.wait_for_selector("#episode article")
        phone.locator("#episode article").first.scroll_into_view_if_needed()
        shoot(phone, "phone")
        watch_page(browser, folder)


if __name__ == "__main__":
    main()
