"""Scores of agents with their uncertainty, their cost, and how they fail; and one run against another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import msgspec

from jupyter_env.answer import reference_text
from jupyter_env.chat import Usage
from jupyter_env.dabstep_compat import question_scorer
from jupyter_env.episode import EpisodeRecord
from jupyter_env.literals import fold
from jupyter_env.statistics import cluster_interval, mcnemar, paired_bootstrap, pass_at_k, wilson_interval
from jupyter_env.task import Task, TaskError, TaskPool
from jupyter_env.tasksets import dabench

__all__ = ["LEVELS", "Comparison", "Cost", "PassRate", "Score", "compare", "evaluate", "pass_rates", "wilson_interval"]

LEVELS = ("easy", "medium", "hard", "expert")


class PassRate(msgspec.Struct, frozen=True, kw_only=True):
    """Correct episodes out of those that count."""

    correct: int
    episodes: int
    """Without failures of the machine, and without answers that nobody here can judge."""

    @property
    def rate(self) -> float:
        """From 0 to 1; not a number without episodes."""
        return self.correct / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval; see `wilson_interval`. Too narrow where a task has several episodes."""
        return wilson_interval(self.correct, self.episodes)


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the episodes that count."""

    turns: float
    model_s: float
    cell_s: float
    total_s: float
    prompt_tokens: float
    cached_tokens: float
    completion_tokens: float
    completion_tokens_per_right_answer: float | None
    """Of all episodes, the wrong ones too; None without a right answer."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One agent on one pool."""

    agent: str
    tasks: int
    all: PassRate
    levels: dict[str, PassRate]
    pass_at: dict[int, float]
    """pass@k by k, the mean over tasks; k up to the fewest episodes that a task has."""
    interval: tuple[float, float]
    """The 95% bounds of pass@1 by the bootstrap over tasks."""
    compat: float
    """The share right for the benchmark's published scorer (DABench's own, else DABstep's): for comparing only."""
    dabench: dabench.Metrics | None
    cost: Cost
    failures: dict[str, int]
    """Each episode that is not right, under one head, the most frequent first; see `failure`."""
    malformed_turns: float
    """Share of all turns."""
    failed_cells: float
    """Share of all cells that did not end well."""
    machine_failures: int
    """Episodes that the machine failed; they count nowhere."""
    unjudged: int
    """Episodes whose answer only the benchmark's owner can judge; they count in `cost` alone."""
    configs: list[str]
    """Hashes of the runs' configurations; more than one means that unlike things were averaged."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two agents on the tasks that both have done."""

    first: str
    second: str
    tasks: int
    first_rate: float
    second_rate: float
    difference: float
    """Second minus first, the mean over tasks."""
    interval: tuple[float, float]
    """Of the difference, 95%, by the paired bootstrap over tasks."""
    p_bootstrap: float
    p_mcnemar: float | None
    """Exact; None where a task has more than one episode, which McNemar's test has no place for."""
    only_first: list[str]
    """Tasks on which the first is right more often."""
    only_second: list[str]


def evaluate(records: Iterable[EpisodeRecord], pool: TaskPool | None = None) -> list[Score]:
    """The score of each agent, in the order in which they come.

    Args:
        records: of a run, or of several.
        pool: the tasks; without it compat scores compare with the strict answer's own text.

    Raises:
        TaskError: an episode's task is not in the pool.
    """
    by_agent: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        by_agent.setdefault(record.agent, []).append(record)
    return [_score(agent, of_agent, pool) for agent, of_agent in by_agent.items()]


def _score(agent: str, records: list[EpisodeRecord], pool: TaskPool | None) -> Score:
    ended = [record for record in records if record.stop_reason != "infrastructure_error"]
    judged = [record for record in ended if record.reward is not None]
    compat = {record.id: _compat(record, pool.get(record.task_id) if pool is not None else None) for record in judged}
    by_task = _by_task(judged)
    levels = {level: [record for record in judged if record.level == level] for level in _levels(judged)}
    named = [
        dabench.score(record.answer, pool.get(record.task_id).metadata["labels"])
        for record in judged
        if pool is not None and _benchmark(pool.get(record.task_id)) == "dabench"
    ]
    cells = [cell for record in ended for cell in record.cells]
    fewest = min((len(episodes) for episodes in by_task.values()), default=0)
    return Score(
        agent=agent,
        tasks=len(by_task),
        all=_rate(judged),
        levels={level: _rate(of_level) for level, of_level in levels.items()},
        pass_at={k: _pass_at(by_task, k) for k in _ks(fewest)},
        interval=cluster_interval([_mean(episodes) for episodes in by_task.values()]) if by_task else (0.0, 1.0),
        compat=_share(compat.values()),
        dabench=dabench.metrics(named) if named and len(named) == len(judged) else None,
        cost=_cost(ended),
        failures=dict(
            Counter(failure(record, compat[record.id]) for record in judged if record.reward != 1.0).most_common()
        ),
        malformed_turns=sum(r.malformed_turns for r in ended) / max(1, sum(r.turns for r in ended)),
        failed_cells=_share(cell.status != "ok" for cell in cells),
        machine_failures=len(records) - len(ended),
        unjudged=len(ended) - len(judged),
        configs=sorted({record.config for record in records if record.config}),
    )


def failure(record: EpisodeRecord, compat: bool) -> str:
    """Under which head an episode that is not right falls: how it ended, or what is striking about its answer."""
    if record.stop_reason != "answered":
        return str(record.stop_reason)
    if compat:
        return "right for the published scorer only"
    if not record.cells:
        return "answered without running code"
    if fold(record.answer or "") in ("not applicable", "n/a"):
        return "gave up: not applicable"
    if record.cells[-1].status != "ok":
        return "answered after a failed cell"
    return "wrong answer"


def compare(first: Sequence[EpisodeRecord], second: Sequence[EpisodeRecord]) -> Comparison:
    """One agent's episodes against another's, paired by task; tasks that only one has done are left out.

    Raises:
        TaskError: no task in common, or episodes of several agents on one side.
    """
    sides = []
    for records in (first, second):
        judged = [r for r in records if r.stop_reason != "infrastructure_error" and r.reward is not None]
        if len(agents := sorted({record.agent for record in judged})) > 1:
            raise TaskError(f"two agents are compared, and one run holds {', '.join(agents)}; choose with --agent")
        sides.append(_by_task(judged))
    tasks = [task for task in sides[0] if task in sides[1]]
    if not tasks:
        raise TaskError("the two runs have no task in common that both have finished")
    rates = [[_mean(side[task]) for task in tasks] for side in sides]
    differences = [b - a for a, b in zip(*rates, strict=True)]
    interval, p = paired_bootstrap(differences)
    better = {task: difference for task, difference in zip(tasks, differences, strict=True) if difference}
    only_first = [task for task, difference in better.items() if difference < 0]
    only_second = [task for task, difference in better.items() if difference > 0]
    single = all(len(side[task]) == 1 for side in sides for task in tasks)
    return Comparison(
        first=sides[0][tasks[0]][0].agent,
        second=sides[1][tasks[0]][0].agent,
        tasks=len(tasks),
        first_rate=fmean(rates[0]),
        second_rate=fmean(rates[1]),
        difference=fmean(differences),
        interval=interval,
        p_bootstrap=p,
        p_mcnemar=mcnemar(len(only_first), len(only_second)) if single else None,
        only_first=only_first,
        only_second=only_second,
    )


def pass_rates(records: Iterable[EpisodeRecord]) -> dict[str, dict[str, PassRate]]:
    """By agent, then by level in order of difficulty with "all" last."""
    by_agent: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        if record.stop_reason != "infrastructure_error" and record.reward is not None:
            by_agent.setdefault(record.agent, []).append(record)
    return {
        agent: {
            **{level: _rate([r for r in judged if r.level == level]) for level in _levels(judged)},
            "all": _rate(judged),
        }
        for agent, judged in by_agent.items()
    }


def _levels(records: Iterable[EpisodeRecord]) -> list[str]:
    """The levels that occur, unknown ones first and then by difficulty."""
    order = {level: rank for rank, level in enumerate(LEVELS)}
    return sorted({record.level for record in records}, key=lambda level: order.get(level, -1))


def _rate(records: list[EpisodeRecord]) -> PassRate:
    return PassRate(correct=sum(record.reward == 1.0 for record in records), episodes=len(records))


def _by_task(records: Iterable[EpisodeRecord]) -> dict[str, list[EpisodeRecord]]:
    by_task: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        by_task.setdefault(record.task_id, []).append(record)
    return by_task


def _mean(episodes: list[EpisodeRecord]) -> float:
    return fmean(record.reward == 1.0 for record in episodes)


def _share(flags: Iterable[bool]) -> float:
    flags = list(flags)
    return sum(flags) / len(flags) if flags else 0.0


def _ks(fewest: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return sorted({k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= fewest} | ({fewest} if fewest else set()))


def _pass_at(by_task: dict[str, list[EpisodeRecord]], k: int) -> float:
    return fmean(pass_at_k(len(e), sum(r.reward == 1.0 for r in e), k) for e in by_task.values())


def _benchmark(task: Task) -> Any:
    return task.metadata.get("benchmark")


def _compat(record: EpisodeRecord, task: Task | None) -> bool:
    """Whether the benchmark's published scorer takes the answer."""
    if task is not None and _benchmark(task) == "dabench":
        return all(dabench.score(record.answer, task.metadata["labels"]).values())
    reference = record.expected
    if task is not None:
        reference = str(task.metadata.get("reference") or reference_text(task.answer))
    return question_scorer(record.answer, reference)


def _cost(records: list[EpisodeRecord]) -> Cost:
    n = max(1, len(records))
    usage = sum((record.usage for record in records), Usage())
    right = sum(record.reward == 1.0 for record in records)
    return Cost(
        turns=sum(record.turns for record in records) / n,
        model_s=sum(record.model_s for record in records) / n,
        cell_s=sum(record.cell_s for record in records) / n,
        total_s=sum(record.duration_s for record in records) / n,
        prompt_tokens=usage.prompt_tokens / n,
        cached_tokens=usage.cached_tokens / n,
        completion_tokens=usage.completion_tokens / n,
        completion_tokens_per_right_answer=usage.completion_tokens / right if right else None,
    )
