"""Statistics against known values and simulation, and scores of episodes made by hand."""

import random
from itertools import combinations
from statistics import fmean
from typing import Any

import pytest

from jupyter_env import Task, TaskError, TaskPool
from jupyter_env.answer import Number, Text
from jupyter_env.chat import Usage
from jupyter_env.episode import CellRecord, EpisodeRecord
from jupyter_env.evaluate import compare, evaluate
from jupyter_env.statistics import cluster_interval, mcnemar, paired_bootstrap, pass_at_k


def test_pass_at_k_is_the_share_of_all_draws() -> None:
    for n in range(1, 8):
        for correct in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([True] * correct + [False] * (n - correct), k))
                assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    with pytest.raises(ValueError, match="at least 3"):
        pass_at_k(2, 1, 3)


def test_mcnemar_against_known_values() -> None:
    # R: binom.test(c(b, c))$p.value
    for first, second, p in ((0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (3, 10, 0.09228516), (15, 5, 0.04138947)):
        assert mcnemar(first, second) == pytest.approx(p, abs=1e-7)


def test_bootstrap_against_theory_and_with_its_seed() -> None:
    values = [1.0] * 120 + [0.0] * 80
    low, high = cluster_interval(values)
    half = 1.96 * (0.6 * 0.4 / 200) ** 0.5
    assert low == pytest.approx(0.6 - half, abs=0.01) and high == pytest.approx(0.6 + half, abs=0.01)
    assert cluster_interval(values) == cluster_interval(values)
    assert cluster_interval([1.0] * 5) == (1.0, 1.0)


def test_clusters_make_the_interval_wider_than_episodes_would() -> None:
    by_task = [[1.0] * 8] * 10 + [[0.0] * 8] * 10
    tasks = cluster_interval([fmean(task) for task in by_task])
    episodes = cluster_interval([value for task in by_task for value in task])
    assert tasks[1] - tasks[0] > 2 * (episodes[1] - episodes[0])


def test_paired_bootstrap_covers_as_it_says() -> None:
    """Of 200 pairs of runs without a difference, about one in twenty looks like one."""
    rng = random.Random(1)
    found = 0
    for trial in range(200):
        differences = [float(rng.random() < 0.5) - float(rng.random() < 0.5) for _ in range(60)]
        interval, p = paired_bootstrap(differences, seed=trial, resamples=400)
        found += p < 0.05
        assert interval[0] <= fmean(differences) <= interval[1]
    assert 2 <= found <= 22
    assert paired_bootstrap([1.0] * 30)[1] < 0.001 and paired_bootstrap([0.0] * 30)[1] == 1.0


def episode(task: str, seed: int = 0, right: bool = False, agent: str = "m", **fields: Any) -> EpisodeRecord:
    given = {
        "question": "?",
        "level": "easy",
        "stop_reason": "answered",
        "reward": float(right),
        "answer": "x",
        "expected": "y",
        "turns": 2,
        "usage": Usage(requests=2, prompt_tokens=100, completion_tokens=10),
        **fields,
    }
    return EpisodeRecord(id=f"{task}.{agent}.{seed}", task_id=task, seed=seed, agent=agent, **given)


def cell(status: Any = "ok") -> CellRecord:
    return CellRecord(turn=1, code="1", comment="", status=status, outputs=[], text="", duration_s=0.1)


def test_scores() -> None:
    records = [
        episode("a", 0, True, cells=[cell()]),
        episode("a", 1, False, cells=[cell("code_error")]),
        episode("b", 0, False, level="hard"),
        episode("b", 1, False, level="hard", answer="not applicable", cells=[cell()]),
        episode("b", 2, False, level="hard", answer=None, stop_reason="no_call"),
        episode("b", 3, level="hard", reward=None, stop_reason="infrastructure_error"),
        episode("c", reward=None),
    ]
    [score] = evaluate(records)
    assert (score.all.correct, score.all.episodes, score.tasks) == (1, 5, 2)
    assert (score.machine_failures, score.unjudged) == (1, 1)
    assert score.pass_at == {1: 0.25, 2: 0.5}
    assert {level: (rate.correct, rate.episodes) for level, rate in score.levels.items()} == {
        "easy": (1, 2),
        "hard": (0, 3),
    }
    assert score.failures == {
        "answered after a failed cell": 1,
        "answered without running code": 1,
        "gave up: not applicable": 1,
        "no_call": 1,
    }
    assert score.cost.completion_tokens_per_right_answer == 60 and score.cost.turns == 2
    assert score.failed_cells == pytest.approx(1 / 3)


def test_strict_and_compat_stand_side_by_side() -> None:
    tasks = [
        Task(id="a", question="?", answer=Number(value=5, decimals=2), metadata={"reference": "5"}),
        Task(id="b", question="?", answer=Text(value="yes")),
    ]
    records = [
        episode("a", answer="-5", expected="5.00", cells=[cell()]),
        episode("b", answer="yes and no", expected="yes", cells=[cell()]),
    ]
    [score] = evaluate(records, TaskPool(tasks))
    assert score.compat == 1.0 and score.all.rate == 0.0
    assert score.failures == {"right for the published scorer only": 2}
    with pytest.raises(TaskError, match="no task 'c'"):
        evaluate([episode("c")], TaskPool(tasks))


def test_two_runs_are_compared_on_what_both_have() -> None:
    first = [episode(f"t{i}", right=i < 4) for i in range(12)]
    second = [episode(f"t{i}", right=i < 10, agent="n") for i in range(1, 13)]
    found = compare(first, second)
    assert (found.tasks, found.first, found.second) == (11, "m", "n")
    assert found.first_rate == pytest.approx(3 / 11) and found.second_rate == pytest.approx(9 / 11)
    assert found.only_first == [] and found.only_second == [f"t{i}" for i in range(4, 10)]
    assert found.p_mcnemar == pytest.approx(2 / 2**6)
    assert found.interval[0] > 0 and found.p_bootstrap < 0.05
    several = compare(first, [*second, episode("t1", 1, agent="n")])
    assert several.p_mcnemar is None and several.tasks == 11
    with pytest.raises(TaskError, match="in common"):
        compare(first, [episode("z")])
    with pytest.raises(TaskError, match="--agent"):
        compare([*first, *second], second)
