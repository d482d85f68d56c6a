"""The real kagglehub and kagglesdk against a server here that speaks their API and misbehaves as it is told."""

import base64
import hashlib
import io
import json
import os
import stat
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from kagglehub.exceptions import DataCorruptionError
from kagglesdk import kaggle_env
from runs import ids, notebook, outcomes, program, run_here, write_zip
from test_metakaggle import write_dump

from pipeline import kaggle
from pipeline.kaggle import Refused, fetch, unpack, with_backoff
from pipeline.recipe import FetchSettings, Recipe
from pipeline.stages.fetch import Fetch

SETTINGS = FetchSettings(online=True, max_bytes=5_000_000, shares=2, attempts=4)


def archive_of(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return packed.getvalue()


class KaggleServer:
    """Data sets by `OWNER/NAME`, and what goes wrong with them."""

    def __init__(self) -> None:
        self.archives: dict[str, bytes] = {}
        self.licences: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.busy: Counter[str] = Counter()
        """How many more times a call is answered 429."""
        self.cut: Counter[str] = Counter()
        """How many more times a download breaks off in the middle."""
        self.wrong_hash: set[str] = set()
        self.calls: list[tuple[str, str, str]] = []
        """(what, data set, Range or version) in order."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.answer(self, self.path.rsplit("/", 1)[1], body)

            def do_GET(self) -> None:
                server.send_archive(self, self.path.removeprefix("/blob/"))

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, call: str, body: dict[str, Any]) -> None:
        name = f"{body.get('ownerSlug', 'competitions')}/{body.get('datasetSlug') or body.get('competitionName')}"
        self.calls.append((call, name, str(body.get("datasetVersionNumber", ""))))
        if self.busy[call] > 0:
            self.busy[call] -= 1
            return _reply(request, 429, b"{}", {"Retry-After": "0.01"})
        if name not in self.archives:
            return _reply(request, 404, json.dumps({"code": 404, "message": "no such data set"}).encode())
        if call == "GetDataset":
            about = {
                "ref": name,
                "licenseName": self.licences.get(name, "CC0: Public Domain"),
                "totalBytes": self.sizes.get(name, len(self.archives[name])),
                "currentVersionNumber": 7,
            }
            return _reply(request, 200, json.dumps(about).encode())
        return _reply(request, 302, b"", {"Location": f"{self.url}/blob/{name}"})

    def send_archive(self, request: BaseHTTPRequestHandler, name: str) -> None:
        content = self.archives[name]
        wanted = request.headers.get("Range", "")
        self.calls.append(("blob", name, wanted))
        first = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if wanted else 0
        md5 = hashlib.md5(b"other" if name in self.wrong_hash else content).digest()
        request.send_response(206 if wanted else 200)
        request.send_header("Content-Length", str(len(content) - first))
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Type", "application/zip")
        request.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={base64.b64encode(md5).decode()}")
        request.end_headers()
        if self.cut[name] > 0:
            self.cut[name] -= 1
            request.wfile.write(content[first : first + (len(content) - first) // 2])
            request.wfile.flush()
            request.close_connection = True
            return
        request.wfile.write(content[first:])


def _reply(request: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(code)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KaggleServer]:
    found = KaggleServer()
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, found.url)
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", "secret-key")
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield found
    found.http.shutdown()
    found.http.server_close()


def test_asked_first_then_fetched_with_its_version(server: KaggleServer, tmp_path: Path) -> None:
    server.archives["ann/wines"] = archive_of(**{"wines.csv": b"a,b\n1,2\n", "deep__more.csv": b"x\n"})
    got = fetch("ann/wines", 3, tmp_path / "sets", SETTINGS)
    assert got == {
        "folder": "ann+wines@3",
        "licence": "CC0: Public Domain",
        "bytes": len(server.archives["ann/wines"]),
        "version": 3,
    }
    assert (tmp_path / "sets" / "ann+wines@3" / "deep" / "more.csv").read_bytes() == b"x\n"
    assert [call[:2] for call in server.calls] == [
        ("GetDataset", "ann/wines"),
        ("DownloadDataset", "ann/wines"),
        ("blob", "ann/wines"),
    ]
    assert server.calls[1][2] == "3"
    fetch("ann/wines", 3, tmp_path / "sets", SETTINGS)
    assert [call[0] for call in server.calls[3:]] == ["GetDataset"], "the second time nothing is downloaded"


def test_no_version_means_the_newest_of_now(server: KaggleServer, tmp_path: Path) -> None:
    server.archives["ann/wines"] = archive_of(a=b"1")
    assert fetch("ann/wines", None, tmp_path, SETTINGS)["folder"] == "ann+wines@7"


def test_a_competition(server: KaggleServer, tmp_path: Path) -> None:
    server.archives["competitions/titanic"] = archive_of(**{"train.csv": b"1\n"})
    assert fetch("competitions/titanic", None, tmp_path, SETTINGS)["folder"] == "competitions+titanic"
    assert (tmp_path / "competitions+titanic" / "train.csv").exists()


def test_429_is_waited_out(server: KaggleServer, tmp_path: Path) -> None:
    server.archives["ann/wines"] = archive_of(a=b"1")
    server.busy.update(GetDataset=2, DownloadDataset=3)
    fetch("ann/wines", 1, tmp_path, SETTINGS)
    assert Counter(call[0] for call in server.calls) == {"GetDataset": 3, "DownloadDataset": 4, "blob": 1}


def test_429_without_end_is_a_failure(server: KaggleServer, tmp_path: Path) -> None:
    server.archives["ann/wines"] = archive_of(a=b"1")
    server.busy["GetDataset"] = 99
    with pytest.raises(requests.HTTPError, match="429"):
        fetch("ann/wines", 1, tmp_path, SETTINGS)
    assert len(server.calls) == SETTINGS.attempts


def test_a_download_that_breaks_off_goes_on_where_it_was(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kaggle.random, "uniform", lambda a, b: 0.0)
    server.archives["ann/big"] = archive_of(**{"big.bin": os.urandom(3_000_000)})
    server.cut["ann/big"] = 1
    fetch("ann/big", 1, tmp_path, SETTINGS)
    ranges = [call[2] for call in server.calls if call[0] == "blob"]
    assert ranges[0] == ""
    assert ranges[-1].startswith("bytes=") and int(ranges[-1][6:-1]) > 1_000_000
    assert (tmp_path / "ann+big@1" / "big.bin").stat().st_size == 3_000_000


def test_wrong_content_is_not_kept(server: KaggleServer, tmp_path: Path) -> None:
    server.archives["ann/wines"] = archive_of(a=b"1")
    server.wrong_hash.add("ann/wines")
    with pytest.raises(DataCorruptionError):
        fetch("ann/wines", 1, tmp_path, SETTINGS)
    server.wrong_hash.clear()
    fetch("ann/wines", 1, tmp_path, SETTINGS)
    assert (tmp_path / "ann+wines@1" / "a").read_bytes() == b"1"


def test_policy(server: KaggleServer, tmp_path: Path) -> None:
    server.archives = {name: archive_of(a=b"1") for name in ("ann/secret", "ann/huge", "ann/liar")}
    server.licences["ann/secret"] = "Other (specified in description)"
    server.sizes.update({"ann/huge": 5_000_001, "ann/liar": 10})
    server.archives["ann/liar"] = os.urandom(5_000_001)
    for name, reason in (("ann/secret", "licence"), ("ann/huge", "too_large"), ("ann/liar", "too_large")):
        with pytest.raises(Refused) as caught:
            fetch(name, 1, tmp_path, SETTINGS)
        assert caught.value.reason == reason
    assert "blob" not in {call[0] for call in server.calls if call[1] in ("ann/secret", "ann/huge")}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("ann+")]


def test_two_processes_download_once(server: KaggleServer, tmp_path: Path) -> None:
    server.archives["ann/wines"] = archive_of(**{"a.bin": os.urandom(500_000)})
    threads = [threading.Thread(target=fetch, args=("ann/wines", 1, tmp_path, SETTINGS)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [call[0] for call in server.calls].count("blob") == 1


def _zip_with(tmp_path: Path, name: str, content: bytes = b"x", mode: int = 0) -> Path:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr("first.csv", b"1")
        archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize(
    "name", ["../up.csv", "/abs.csv", "a/../../up.csv", "..\\up.csv", "C:\\up.csv", "a/..", "C:/x"]
)
def test_an_archive_that_leaves_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match="unsafe_archive"):
        unpack(
            _zip_with(tmp_path, name),
            tmp_path / "out" / "set" if (tmp_path / "out").mkdir() is None else tmp_path,
            1000,
        )
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.zip"]


def test_links_devices_and_bombs(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no plain file"):
        unpack(_zip_with(tmp_path, "link", b"/etc/passwd", stat.S_IFLNK | 0o777), tmp_path / "set", 1000)
    with pytest.raises(Refused, match="too_large"):
        unpack(_zip_with(tmp_path, "bomb.csv", b"\0" * 10_000_000), tmp_path / "set", 1_000_000)
    tape = tmp_path / "a.tar"
    for kind, target in ((tarfile.SYMTYPE, "/etc"), (tarfile.LNKTYPE, "../x"), (tarfile.CHRTYPE, "")):
        with tarfile.open(tape, "w") as archive:
            member = tarfile.TarInfo("entry")
            member.type, member.linkname = kind, target
            archive.addfile(member)
        with pytest.raises(Refused, match="no plain file"):
            unpack(tape, tmp_path / "set", 1000)
    (tmp_path / "not.zip").write_bytes(b"hello")
    with pytest.raises(Refused, match="not_an_archive"):
        unpack(tmp_path / "not.zip", tmp_path / "set", 1000)
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.glob(".set*"))


def test_backoff_doubles_with_jitter_and_heeds_retry_after() -> None:
    waits: list[float] = []
    response = requests.Response()
    response.status_code = 503

    def call() -> None:
        raise requests.HTTPError(response=response)

    with pytest.raises(requests.HTTPError):
        with_backoff(call, 5, waits.append)
    assert len(waits) == 4
    assert all(0.5 * 2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waits))
    waits.clear()
    response.headers["Retry-After"] = "17"
    with pytest.raises(requests.HTTPError):
        with_backoff(call, 2, waits.append)
    assert waits == [17.0]
    response.status_code = 403
    with pytest.raises(requests.HTTPError):
        with_backoff(call, 5, waits.append)
    assert waits == [17.0], "a refusal is not asked again"


def test_from_zips_to_notebooks_with_their_data(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: metadata says which data sets, the server gives them, the rows name files, versions and hashes."""
    monkeypatch.setattr(kaggle.random, "uniform", lambda a, b: 0.0)
    write_dump(tmp_path / "meta")
    server.archives = {
        "ann/wines": archive_of(**{"data.csv": b"a\n1\n"}),
        "team/glass": archive_of(**{"data.csv": b"b\n2\n"}),
        "competitions/titanic": archive_of(**{"train.csv": b"c\n"}),
    }
    server.licences["team/glass"] = "secret"
    notebooks = {101: program(1), 102: program(2), 103: program(3), 104: program(4)}
    notebooks[101][0] = (
        "import pandas as pd\ntable = pd.read_csv('/kaggle/input/wines/data.csv')\nt = pd.read_csv('../input/titanic/train.csv')"  # noqa: E501
    )
    notebooks[102][0] = "import pandas as pd\ntable = pd.read_csv('../input/data.csv')"
    write_zip(tmp_path / "in.zip", {f"0000/000/{v}.ipynb": notebook(*code) for v, code in notebooks.items()})
    server.busy["DownloadDataset"] = 1
    recipe = Recipe(tasks=2, workers=1, fetch=SETTINGS)
    run = run_here(
        tmp_path / "run", tmp_path / "in.zip", until="render", recipe=recipe, metadata=str(tmp_path / "meta")
    )
    fetched = {name: (item.state, item.reason) for name, item in outcomes(run, "fetch").items()}
    assert fetched == {
        "ann/wines": ("done", ""),
        "team/glass": ("rejected", "licence"),
        "competitions/titanic": ("done", ""),
    }
    data = {name.split("!")[1]: (item.state, item.reason) for name, item in outcomes(run, "data").items()}
    assert data == {
        "0000/000/101.ipynb": ("done", ""),
        "0000/000/102.ipynb": ("rejected", "data_set_not_here"),
        "0000/000/103.ipynb": ("rejected", "no_data_set_known"),
        "0000/000/104.ipynb": ("rejected", "no_data_set_known"),
    }
    from pipeline.parts import read_rows

    (row,) = read_rows(run.all_parts("render"))
    assert {(file["read"], file["dataset"], file["file"]) for file in row["files"]} == {
        ("/kaggle/input/wines/data.csv", "ann+wines@5", "data.csv"),
        ("../input/titanic/train.csv", "competitions+titanic", "train.csv"),
    }
    assert row["files"][0]["sha256"] == hashlib.sha256(b"a\n1\n").hexdigest()
    assert row["votes"] == 12
    assert ids(run, "render") == ["in.zip!0000/000/101.ipynb"]
    before = len(server.calls)
    run_here(tmp_path / "run", tmp_path / "in.zip", until="render", recipe=recipe, metadata=str(tmp_path / "meta"))
    assert len(server.calls) == before, "nothing is asked twice"


def test_a_data_set_that_is_gone_is_a_failure_with_its_error(server: KaggleServer, tmp_path: Path) -> None:
    with pytest.raises(requests.HTTPError):
        fetch("ann/none", 1, tmp_path, SETTINGS)
    assert Fetch.batch_items == 1
    assert "secret-key" not in json.dumps(server.calls)
