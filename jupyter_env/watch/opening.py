"""Opens a secret address in the user's browser without showing it to the machine's other users."""

from __future__ import annotations

import html
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={address}">
<title>An agent at work</title>
<p><a href="{address}">An agent at work</a></p>
"""


@contextmanager
def opened_in_browser(address: str, failed: Callable[[], None]) -> Iterator[None]:
    """Open an address beside what the block does.

    A browser's command line can be read by every user of the machine. It gets the path of a page that leads on to
    the address; the page is the user's alone, and goes at the end of the block.

    Args:
        address: of a server that listens already.
        failed: called where no browser could be opened, in a thread of its own.
    """
    with TemporaryDirectory(prefix="jupyter-env-open-") as folder:  # made for its owner alone
        page = Path(folder) / "open.html"
        page.touch(mode=0o600, exist_ok=False)
        page.write_text(_PAGE.format(address=html.escape(address)), encoding="utf-8")

        def show() -> None:
            try:
                found = webbrowser.open(page.as_uri())
            except webbrowser.Error:
                found = False
            if not found:
                failed()

        # A browser in the terminal holds its caller until it is left; nothing waits for this thread.
        threading.Thread(target=show, daemon=True).start()
        yield
