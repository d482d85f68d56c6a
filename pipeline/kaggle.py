"""Data sets from Kaggle: what kagglehub lacks around its client (policy, backoff, lock, safe unpacking), and no more.

Asked first, downloaded after: one cheap call gives licence, size and the newest version. kagglehub's own
`download_file` does the transfer: it resumes with a Range request and checks the MD5 that the server names. Credentials
are kagglehub's business (KAGGLE_USERNAME and KAGGLE_KEY, or KAGGLE_API_TOKEN, or ~/.kaggle).
"""

from __future__ import annotations

import fcntl
import random
import shutil
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import msgspec
import requests
from kagglehub.clients import build_kaggle_client, download_file
from kagglehub.exceptions import KaggleApiHTTPError
from kagglehub.handle import CompetitionHandle, DatasetHandle
from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFilesRequest
from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest, ApiGetDatasetRequest

T = TypeVar("T")

_AGAIN = {408, 425, 429, 500, 502, 503, 504}
LONGEST_WAIT_S = 600.0


class FetchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which data sets are downloaded from Kaggle."""

    online: bool = False
    max_bytes: int = 10_000_000_000
    """A data set over 10 GB is left where it is: the published run left the same out by hand."""
    licences: tuple[str, ...] = (
        "CC0-1.0",
        "CC0: Public Domain",
        "CC-BY-4.0",
        "CC BY 4.0",
        "Attribution 4.0 International (CC BY 4.0)",
        "CC-BY-SA-4.0",
        "CC BY-SA 4.0",
        "Apache 2.0",
        "Apache-2.0",
        "MIT",
        "PDDL",
        "ODC Public Domain Dedication and Licence (PDDL)",
        "ODbL-1.0",
        "Database: Open Database, Contents: Database Contents",
        "U.S. Government Works",
    )
    """A data set with another licence is not taken."""
    shares: int = 16
    """Into how many units the list of data sets is cut; few, as Kaggle counts requests."""
    attempts: int = 6
    """Tries of one request that is answered 429 or 5xx, or not at all."""


class Refused(ValueError):
    """A data set that the policy or its own archive rules out.

    Attributes:
        reason: one of a few fixed words, to be counted.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def with_backoff(call: Callable[[], T], attempts: int, sleep: Callable[[float], None] = time.sleep) -> T:
    """Call until it is answered: 429 and 5xx are waited out (Retry-After, else doubling with jitter).

    Raises:
        requests.HTTPError and others: another answer, or the last attempt's.
    """
    for attempt in range(attempts):
        try:
            return call()
        except (requests.RequestException, KaggleApiHTTPError) as error:
            response = getattr(error, "response", None)
            if (response is not None and response.status_code not in _AGAIN) or attempt + 1 == attempts:
                raise
            sleep(_wait_s(response, attempt))
    raise AssertionError("unreachable")


def _wait_s(response: requests.Response | None, attempt: int) -> float:
    named = response.headers.get("Retry-After", "") if response is not None else ""
    if named.replace(".", "", 1).isdigit():
        return min(float(named), LONGEST_WAIT_S)
    return min(2.0**attempt * random.uniform(0.5, 1.5), LONGEST_WAIT_S)


def ask(owner: str, name: str, attempts: int) -> dict[str, Any]:
    """What Kaggle says of a data set before anything is downloaded."""

    def call() -> dict[str, Any]:
        with build_kaggle_client() as client:
            request = ApiGetDatasetRequest()
            request.owner_slug, request.dataset_slug = owner, name
            found = client.datasets.dataset_api_client.get_dataset(request)
        return {"licence": found.license_name, "bytes": found.total_bytes, "version": found.current_version_number}

    return with_backoff(call, attempts)


def fetch(ref: str, version: int | None, datasets: Path, settings: FetchSettings) -> dict[str, Any]:
    """Download one data set (`OWNER/NAME`, or `competitions/NAME`) into `datasets/OWNER+NAME@VERSION`.

    Returns:
        Its folder's name, licence, version and bytes.

    Raises:
        Refused: licence, size, or an archive that can't be unpacked safely.
        requests.HTTPError: Kaggle's answer, after the attempts; kagglehub's DataCorruptionError: wrong content.
    """
    owner, name = ref.split("/")
    if owner == "competitions":
        about = {"licence": None, "bytes": None, "version": None}
    else:
        about = ask(owner, name, settings.attempts)
        _check_policy(about, settings)
        version = version or about["version"]
    folder = f"{owner}+{name}" + (f"@{version}" if version else "")
    target = datasets / _safe_name(folder)
    datasets.mkdir(parents=True, exist_ok=True)
    with _lock(datasets / f".{target.name}.lock"):
        if not target.exists():
            archive = datasets / f".{target.name}.archive"
            with_backoff(lambda: _download(owner, name, version, archive, settings.max_bytes), settings.attempts)
            unpack(archive, target, settings.max_bytes)
            archive.unlink()
    return {"folder": target.name, **about, "version": version}


def _check_policy(about: dict[str, Any], settings: FetchSettings) -> None:
    if about["licence"] not in settings.licences:
        raise Refused("licence", f"{about['licence'] or 'none named'}")
    if (about["bytes"] or 0) > settings.max_bytes:
        raise Refused("too_large", f"{about['bytes']:,} bytes, {settings.max_bytes:,} are the most")


def _safe_name(name: str) -> str:
    if not name or name.startswith(".") or any(letter in name for letter in "/\\\0"):
        raise Refused("bad_name", repr(name))
    return name


def _download(owner: str, name: str, version: int | None, archive: Path, max_bytes: int) -> None:
    with build_kaggle_client() as client:
        if owner == "competitions":
            request = ApiDownloadDataFilesRequest()
            request.competition_name = name
            handle: Any = CompetitionHandle(name)
            response = client.competitions.competition_api_client.download_data_files(request)
        else:
            request = ApiDownloadDatasetRequest()
            request.owner_slug, request.dataset_slug, request.dataset_version_number = owner, name, version
            handle = DatasetHandle(owner, name, version)
            response = client.datasets.dataset_api_client.download_dataset(request)
        response.raise_for_status()
        length = int(response.headers.get("Content-Length", 0))
        if length > max_bytes:
            response.close()
            raise Refused("too_large", f"the archive has {length:,} bytes, {max_bytes:,} are the most")
        download_file(response, str(archive), handle)


def unpack(archive: Path, target: Path, max_bytes: int) -> None:
    """Unpack a zip or tar so that nothing lands outside `target`, no link is made and no bomb goes off.

    Written aside and renamed: the folder is whole or not there.

    Raises:
        Refused: an entry that leaves the folder, a link or device, more bytes than allowed, no archive.
    """
    aside = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    left = max_bytes
    try:
        for entry, content in _entries(archive):
            path = aside / _inside(entry)
            path.parent.mkdir(parents=True, exist_ok=True)
            left -= _copy(content, path, left)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    aside.replace(target)


def _entries(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise Refused("unsafe_archive", f"{info.filename!r} is no plain file")
                _inside(info.filename)
                if not info.is_dir():
                    with zipped.open(info) as content:
                        yield info.filename, content
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as taped:
            for member in taped:
                if not (member.isfile() or member.isdir()):
                    raise Refused("unsafe_archive", f"{member.name!r} is no plain file")
                _inside(member.name)
                taken = taped.extractfile(member)
                if taken is not None:
                    yield member.name, taken
    else:
        raise Refused("not_an_archive", f"{archive.stat().st_size:,} bytes")


def _inside(entry: str) -> Path:
    path = PurePosixPath(entry.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0] or "\0" in entry:
        raise Refused("unsafe_archive", f"{entry!r} leaves the folder")
    return Path(*path.parts)


def _copy(content: IO[bytes], path: Path, most: int) -> int:
    written = 0
    with path.open("xb") as file:
        while block := content.read(1 << 20):
            written += len(block)
            if written > most:
                raise Refused("too_large", f"unpacks to more than allowed (at {path.name!r})")
            file.write(block)
    return written


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time downloads a data set; the others wait and find it there."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
