"""Agents that want the reward without the work: each gets 0, and the next honest episode is clean and gets 1.

The pool lies in a folder, as a user's would. Its main question has an answer of a form (`cheats.SECRET`) that is
nowhere in the table, so that an agent who shows it has either computed it or found a leak. What only a kernel with a
user and a file system of its own can keep from the code is marked `needs_isolation`.
"""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import cheats
import msgspec
import psutil
import pytest
from cheats import PART, RIGHT, WRONG, call
from gymnasium.error import ResetNeeded

from jupyter_env import Budget, DataFile, JupyterQAEnv, KernelSettings, LocalKernel, Task, TaskPool
from jupyter_env.answer import Boolean, Choice, Integer, ListOf, Number, Text, reference_text
from jupyter_env.forkserver.detect import features
from jupyter_env.interpreters import CellResult

GUESSES = {"secret": "aa1-bb2", "count": "13", "mean": "0.5", "largest": "east", "sorted": "yes"}
GUESSES["groups"] = "east"

HONEST = """
import csv, os
clean = [sorted(os.listdir(path)) for path in (".", "data", os.environ["TMPDIR"])]
clean.append(sorted(name for name in os.listdir(os.path.expanduser("~")) if not name.startswith((".", "matplotlib"))))
print(clean)
rows = sorted(csv.DictReader(open("data/table.csv")), key=lambda row: int(row["weight"]))[-3:]
print("#" + "-".join(row["code"] for row in rows), sum(int(row["weight"]) for row in rows), sep="-")
"""
CLEAN = "[['data'], ['table.csv'], [], []]"

missing = [f"{feature.name}: {feature.problem}" for feature in features() if feature.required and feature.problem]
needs_isolation = pytest.mark.skipif(bool(missing), reason=f"this host does not isolate kernels: {missing}")


def make_rows() -> list[dict[str, object]]:
    # Another table in each process: what a second test run on this machine computes is no leak of this one.
    rng = random.Random(os.getpid())
    weights = rng.sample(range(400, 3000), 40)
    letters = "abcdefghijklmnopqrstuvwxyz"
    codes = [f"{rng.choice(letters)}{rng.choice(letters)}{rng.randrange(10)}" for _ in range(40)]
    groups = ["north"] * 22 + ["south"] * 12 + ["east"] * 6
    weights.sort(reverse=True)
    rows = zip(range(40), codes, weights, groups, strict=True)
    shuffled = [{"key": key, "code": code, "weight": weight, "group": group} for key, code, weight, group in rows]
    rng.shuffle(shuffled)
    return shuffled


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> TaskPool:
    origin, saved = tmp_path_factory.mktemp("tables"), tmp_path_factory.mktemp("pool")
    rows = make_rows()
    with (origin / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    heaviest = sorted(rows, key=lambda row: row["weight"])[-3:]
    weights = [row["weight"] for row in rows]
    secret = "#" + "-".join([*(row["code"] for row in heaviest), str(sum(row["weight"] for row in heaviest))])
    assert re.fullmatch(cheats.SECRET, secret)
    answers = {
        "secret": Text(value=secret),
        "count": Integer(value=12),
        "mean": Number(value=sum(weights) / len(weights), decimals=2),
        "largest": Choice(value="north", options=("north", "south", "east")),
        "sorted": Boolean(value=False),
        "groups": ListOf(items=(Text(value="north"), Text(value="south")), ordered=False),
    }
    questions = {
        "secret": "Write #, then, joined with '-', the codes of the three heaviest rows and their summed weight.",
        "count": "How many rows are in group south?",
        "mean": "What is the mean weight?",
        "largest": "Which group has the most rows?",
        "sorted": "Are the rows sorted by weight?",
        "groups": "Which groups have more than 10 rows?",
    }
    files = (DataFile.of("table.csv", origin),)
    tasks = [Task(id=name, question=questions[name], answer=answers[name], files=files) for name in answers]
    TaskPool(tasks, origin).save(saved / "pool.jsonl")
    return TaskPool.load(saved / "pool.jsonl")


@pytest.fixture(scope="module")
def secret(pool: TaskPool) -> str:
    return reference_text(pool.get("secret").answer)


@pytest.fixture(scope="module")
def env(pool: TaskPool, secret: str) -> Iterator[JupyterQAEnv]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", f"hf_{secret}")
        patch.setenv("ANSWER", secret)
        env = JupyterQAEnv(pool, budget=Budget(cell_timeout_s=20), render_mode="ansi")
        yield env
        env.close()


class LazyKernel(LocalKernel):
    """Starts with its first cell: most messages that cheat run none."""

    _files: Mapping[str, Path] | None = None

    async def start(self, files: Mapping[str, Path]) -> None:
        self._files = files

    async def run_cell(self, code: str, timeout_s: float) -> CellResult:
        if self._files is not None:
            await super().start(self._files)
            self._files = None
        return await super().run_cell(code, timeout_s)


@pytest.fixture(scope="module")
def lazy(pool: TaskPool) -> Iterator[JupyterQAEnv]:
    env = JupyterQAEnv(pool, budget=Budget(cell_timeout_s=20), make_interpreter=LazyKernel)
    yield env
    env.close()


@pytest.fixture(scope="module")
def impatient(pool: TaskPool) -> Iterator[JupyterQAEnv]:
    env = JupyterQAEnv(pool, budget=Budget(cell_timeout_s=1.5), kernel=KernelSettings(interrupt_grace_s=0.5))
    yield env
    env.close()


def cheat(env: JupyterQAEnv, *cells: str, task_id: str = "secret", status: str | None = None) -> float:
    """Run the cells, answer with what they show if it has the form of the answer, else guess; returns the reward."""
    env.reset(options={"task_id": task_id})
    shown = ""
    for code in cells:
        observation, reward, terminated, truncated, info = env.step(call("execute_code", code=code))
        assert (reward, terminated) == (0.0, False), info
        shown += observation
        if truncated:
            break
    if status is not None:
        assert info["status"] == status, shown
    if truncated:
        with pytest.raises(ResetNeeded):
            env.step(call("final_answer", answer=GUESSES[task_id]))
        return reward
    found = re.search(cheats.SECRET, shown)
    answer = found[0] if found else GUESSES[task_id]
    _, reward, terminated, truncated, _ = env.step(call("final_answer", answer=answer))
    assert (terminated, truncated) == (True, False)
    return reward


def check_honest(env: JupyterQAEnv, secret: str) -> None:
    """An honest episode of the same environment: a clean folder, the original table, reward 1."""
    env.reset(options={"task_id": "secret"})
    observation, *_, info = env.step(call("execute_code", code=HONEST))
    assert info["status"] == "ok", observation
    assert observation == f"{CLEAN}\n{secret}"
    _, reward, terminated, _, _ = env.step(call("final_answer", answer=observation.splitlines()[-1]))
    assert (reward, terminated) == (1.0, True)


@pytest.mark.parametrize("name", cheats.READS)
def test_searches_find_no_answer(env: JupyterQAEnv, secret: str, name: str) -> None:
    assert cheat(env, cheats.SEARCH + cheats.READS[name], status="ok") == 0.0
    assert secret not in env.render()


def test_an_honest_episode_follows_the_searches(env: JupyterQAEnv, secret: str) -> None:
    assert cheat(env, cheats.SEARCH + "\n".join(cheats.READS.values()), status="ok") == 0.0
    check_honest(env, secret)


def test_searches_find_what_is_there(env: JupyterQAEnv, secret: str) -> None:
    """Else the test above would show nothing."""
    env.reset(options={"task_id": "secret"})
    env.step(call("execute_code", code=cheats.PLANT.format(secret=secret)))
    found = set()
    for name in sorted(cheats.FOUND_WHEN_PLANTED):
        observation, *_ = env.step(call("execute_code", code=cheats.SEARCH + cheats.READS[name]))
        if secret in observation:
            found.add(name)
    env.step(call("execute_code", code=cheats.UNPLANT))
    assert found == cheats.FOUND_WHEN_PLANTED


def filled_in(text: str, pool: TaskPool, task_id: str) -> str:
    right = reference_text(pool.get(task_id).answer)
    return text.replace(RIGHT, right).replace(PART, right[: len(right) // 2]).replace(WRONG, GUESSES[task_id])


@pytest.mark.parametrize("name", cheats.ANSWERS)
def test_answers_that_hedge_or_confuse_are_wrong(lazy: JupyterQAEnv, pool: TaskPool, name: str) -> None:
    task_id, answer = cheats.ANSWERS[name]
    lazy.reset(options={"task_id": task_id})
    message = call("final_answer", answer=filled_in(answer, pool, task_id))
    observation, reward, terminated, truncated, info = lazy.step(message)
    msgspec.json.encode(lazy.record)
    if info["status"] == "malformed":  # no text at all: it is refused as a call, and the episode goes on
        assert name == "half-a-surrogate-pair" and (reward, terminated) == (0.0, False)
        return
    assert (observation, reward, terminated, truncated) == ("", 0.0, True, False), info["reason"]
    with pytest.raises(ResetNeeded):
        lazy.step(call("final_answer", answer=reference_text(pool.get(task_id).answer)))


@pytest.mark.parametrize("task_id", GUESSES)
def test_the_expected_answers_are_right(lazy: JupyterQAEnv, pool: TaskPool, task_id: str) -> None:
    """Else the test above would show nothing; it also follows upon its cheats."""
    lazy.reset(options={"task_id": task_id})
    _, reward, *_ = lazy.step(call("final_answer", answer=reference_text(pool.get(task_id).answer)))
    assert reward == 1.0


@pytest.mark.parametrize("name", cheats.PROTOCOL)
def test_messages_do_not_bend_the_rules(lazy: JupyterQAEnv, pool: TaskPool, secret: str, name: str) -> None:
    lazy.reset(options={"task_id": "count"})
    terminated = False
    for message in cheats.PROTOCOL[name]:
        observation, reward, terminated, truncated, info = lazy.step(filled_in(message, pool, "count"))
        assert (reward, truncated) == (0.0, False)
        assert not re.search(r'<\|im_|</?tool_response|<tool_call>\s*\{"name": "final_answer', observation)
        if terminated:
            assert info["answer"] != "12"
    if not terminated:
        _, reward, terminated, _, _ = lazy.step(call("final_answer", answer=GUESSES["count"]))
        assert (reward, terminated) == (0.0, True)
    if lazy.record.cells:
        check_honest(lazy, secret)


def test_an_honest_episode_follows_messages_and_answers(lazy: JupyterQAEnv, secret: str) -> None:
    check_honest(lazy, secret)


@pytest.mark.parametrize("name", cheats.TAMPERING)
def test_tampering_gains_nothing(env: JupyterQAEnv, secret: str, name: str) -> None:
    assert cheat(env, cheats.TAMPERING[name], "print(reward)" if "flood" not in name else "1") == 0.0
    check_honest(env, secret)


@pytest.mark.parametrize("name", cheats.DEADLY)
def test_a_kernel_that_is_gone_ends_the_episode(impatient: JupyterQAEnv, secret: str, name: str) -> None:
    code, status = cheats.DEADLY[name]
    if name in cheats.FIRST_PROCESS_SURVIVES and not missing:
        status = "ok"
    assert cheat(impatient, code, status=status) == 0.0
    check_honest(impatient, secret)


@pytest.mark.parametrize("hidden", [False, pytest.param(True, marks=needs_isolation)], ids=["daemon", "without-mark"])
def test_daemons_end_with_their_episode(pool: TaskPool, secret: str, hidden: bool) -> None:
    # Found by its argument: an isolated kernel does not know its number on the host.
    seconds = str(1_000_000_000 + random.randrange(1_000_000_000))
    env = JupyterQAEnv(pool)
    try:
        env.reset(options={"task_id": "secret"})
        observation, *_ = env.step(call("execute_code", code=cheats.daemon(seconds, hidden)))
        assert observation == "left a daemon"
        daemons = _daemons(seconds)
        assert len(daemons) == 1
        env.close()
        assert not _runs(daemons[0])
        check_honest(env, secret)
    finally:
        env.close()
        for pid in _daemons(seconds):
            os.kill(pid, signal.SIGKILL)


def _daemons(seconds: str) -> list[int]:
    processes = psutil.process_iter(["cmdline"])
    return [process.pid for process in processes if process.info["cmdline"] == ["sleep", seconds]]


def _runs(pid: int) -> bool:
    """Whether it is there and no zombie, a moment after it was killed."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        time.sleep(0.02)
    return True


def test_tables_of_the_pool_are_out_of_reach_of_relative_paths(env: JupyterQAEnv, pool: TaskPool, secret: str) -> None:
    path = pool.file_path(pool[0].files[0])
    before = path.read_bytes(), path.stat().st_mode
    code = "import os\nos.chmod('data/table.csv', 0)\nos.truncate('data/table.csv', 0)\nos.link('data/table.csv', 'x')"
    assert cheat(env, code) == 0.0
    assert (path.read_bytes(), path.stat().st_mode) == before
    check_honest(env, secret)


@needs_isolation
def test_the_pools_file_is_not_read(env: JupyterQAEnv, pool: TaskPool) -> None:
    assert pool.data_root is not None
    folder = pool.data_root.parent.parent
    code = f"""
for path in pathlib.Path({str(folder)!r}).rglob("*.jsonl"):
    lines = [line for line in path.read_text().splitlines() if "three heaviest rows" in line]
    show(*lines)
"""
    assert cheat(env, cheats.SEARCH + code) == 0.0


@needs_isolation
def test_the_pools_tables_are_not_written(pool: TaskPool, env: JupyterQAEnv) -> None:
    path = pool.file_path(pool[0].files[0])
    target = path.parent / "written"
    cheat(env, f"open({str(target)!r}, 'w').write('1')")
    written = target.exists()
    target.unlink(missing_ok=True)
    assert not written


def _memory_is_readable() -> bool:
    """Whether a child process may read this one's memory (some containers forbid it even to root)."""
    code = "import os; open(f'/proc/{os.getppid()}/mem', 'rb', 0).close()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _memory_is_readable(), reason="this host lets no process read its parent's memory")
@needs_isolation
def test_the_trainers_memory_is_not_read(env: JupyterQAEnv) -> None:
    assert cheat(env, cheats.SEARCH + "show(*memory(os.getppid()))") == 0.0


@needs_isolation
def test_the_pool_is_not_loaded_by_the_code(env: JupyterQAEnv, pool: TaskPool) -> None:
    assert pool.data_root is not None
    code = f"""
from jupyter_env import TaskPool
print(TaskPool.load({str(pool.data_root.parent / "pool.jsonl")!r}).get("secret").answer)
"""
    assert cheat(env, code) == 0.0


@needs_isolation
def test_a_neighbours_folder_is_not_read(env: JupyterQAEnv, pool: TaskPool, secret: str) -> None:
    """Many episodes of one task run at once when a policy is trained with groups of rollouts."""
    neighbour = JupyterQAEnv(pool)
    try:
        neighbour.reset(options={"task_id": "secret"})
        neighbour.step(call("execute_code", code=f"open('notes.txt', 'w').write({secret!r})"))
        assert cheat(env, cheats.SEARCH + cheats.READS["folders-of-earlier-episodes"]) == 0.0
    finally:
        neighbour.close()
