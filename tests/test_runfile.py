"""The files of a run: what survives what, and which runs may share a folder."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from jupyter_env import TaskError, TaskPool
from jupyter_env.episode import EpisodeRecord
from jupyter_env.runfile import RecordFile, RunConfig, claim_folder, pool_digest, read_records

TESTS = Path(__file__).parent


def record(name: str, **fields: object) -> EpisodeRecord:
    return EpisodeRecord(id=name, task_id="a", question="?", stop_reason="answered", **fields)  # type: ignore[arg-type]


def config(**fields: object) -> RunConfig:
    given = {"pool": "p", "agents": {"a": {"temperature": 1}}, "budget": {}, "versions": {}, **fields}
    return RunConfig(**given)  # type: ignore[arg-type]


def append(path: Path, *records: EpisodeRecord) -> None:
    async def go() -> None:
        with RecordFile(path) as file:
            await asyncio.gather(*map(file.append, records))

    asyncio.run(go())


def killed_and_resumed(folder: Path, kernel: str, timeout_s: float) -> list[EpisodeRecord]:
    command = [sys.executable, str(TESTS / "kill_and_resume.py"), str(folder), "300", "30", kernel]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    return list(read_records(folder / "episodes.jsonl"))


def test_300_episodes_killed_30_times_are_each_there_once(tmp_path: Path) -> None:
    records = killed_and_resumed(tmp_path, "fake", 150)
    assert Counter(r.id for r in records) == {f"t{i}.adder.{seed}": 1 for i in range(50) for seed in range(6)}
    assert all(r.reward == 1.0 and r.config and len(r.cells) == 1 for r in records)
    assert (tmp_path / "failures.jsonl").read_bytes() == b""


@pytest.mark.soak
def test_300_episodes_with_real_kernels_killed_30_times_are_each_there_once(tmp_path: Path) -> None:
    records = killed_and_resumed(tmp_path, "real", 3000)
    assert Counter(r.id for r in records) == {f"t{i}.adder.{seed}": 1 for i in range(50) for seed in range(6)}
    assert all(r.reward == 1.0 for r in records)


@pytest.mark.parametrize("torn", [b'{"id": "c", "task', b"{", b"\x00" * 9, b'{"id": "c"}'])
def test_a_last_line_that_was_cut_is_removed(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "episodes.jsonl"
    append(path, record("a"), record("b"))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with RecordFile(path) as file:
        assert file.ids == {"a", "b"}
    assert path.read_bytes() == whole
    path.write_bytes(torn)
    append(path, record("c"))
    assert [r.id for r in read_records(path)] == ["c"]


def test_a_long_torn_line_is_found_from_behind(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    append(path, record("a"))
    with path.open("ab") as file:
        file.write(b"x" * 300_000)
    append(path, record("b"))
    assert [r.id for r in read_records(path)] == ["a", "b"]


def test_a_broken_line_within_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(b"{bad}\n" + msgspec.json.encode(record("a")) + b"\n")
    with pytest.raises(TaskError, match=r"episodes\.jsonl, line 1"):
        RecordFile(path)


def test_an_episode_is_written_once(tmp_path: Path) -> None:
    append(tmp_path / "e.jsonl", record("a"))
    with pytest.raises(ValueError, match="already"):
        append(tmp_path / "e.jsonl", record("a"))
    assert len(list(read_records(tmp_path / "e.jsonl"))) == 1


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with RecordFile(path):
        code = f"from jupyter_env.runfile import RecordFile\nfrom pathlib import Path\nRecordFile(Path({str(path)!r}))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode != 0 and "another process" in other.stderr
    RecordFile(path).__exit__(None, None, None)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk; the kernel refuses the write either way."""
    path = tmp_path / "episodes.jsonl"
    append(path, record("a"))
    whole = path.read_bytes()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 5000, len(whole) + 5000))
        try:
            append(path, record("b", error="x" * 100_000))
        except OSError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert path.read_bytes() == whole


def test_runs_of_different_configuration_do_not_mix_unless_told(tmp_path: Path) -> None:
    claim_folder(tmp_path, config())
    claim_folder(tmp_path, config(pool="q"))  # nothing has been run yet
    append(tmp_path / "episodes.jsonl", record("a"))
    with pytest.raises(TaskError, match="--resume"):
        claim_folder(tmp_path, config(pool="q"))
    claim_folder(tmp_path, config(pool="q"), resume=True)
    other = config(pool="q", agents={"a": {"temperature": 0}})
    with pytest.raises(TaskError, match=r"agents differ.*--mix"):
        claim_folder(tmp_path, other, resume=True)
    claim_folder(tmp_path, other, resume=True, mix=True)
    assert msgspec.json.decode((tmp_path / f"run-{other.hash}.json").read_bytes(), type=RunConfig) == other
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(TaskError, match=r"run\.json"):
        claim_folder(tmp_path, other, resume=True)


def test_the_hash_is_of_what_was_configured(pool: TaskPool) -> None:
    assert config().hash == config().hash != config(budget={"max_turns": 3}).hash
    again = msgspec.json.decode(msgspec.json.encode(config()), type=RunConfig)
    assert again.hash == config().hash
    assert pool_digest(pool) == pool_digest(pool[:]) != pool_digest(pool[:2])
