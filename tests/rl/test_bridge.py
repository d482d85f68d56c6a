"""The bridge to TRL: what a batch is turned into, by episodes that are real and turns that a function writes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripts import TOKENS, Script, answer, run, scripted, turns_so_far
from tiny_model import QUESTION

from jupyter_env import Task, TaskPool
from jupyter_env.answer import Hidden, Integer
from jupyter_env.episode import Budget
from jupyter_env.interpreters import InfrastructureError, KernelSettings
from jupyter_env.rollout import read_records
from rl.environments import Environments
from rl.recipe import Curriculum, Recipe, RecipeError
from rl.rollouts import Runner
from rl.tasks import Schedule, check_tasks
from rl.template import Template
from rl.training import Rollouts, prompt_of, task_id_of

SAME = [  # one prompt, two tasks
    Task(id="right", question=QUESTION, answer=Integer(value=42), level="easy"),
    Task(id="wrong", question=QUESTION, answer=Integer(value=41), level="easy"),
]
POOL = TaskPool([*SAME, *(Task(id=f"n{n}", question=f"What is {n}?", answer=Integer(value=n)) for n in range(4))])
TRAINER = SimpleNamespace(state=SimpleNamespace(global_step=3))


@pytest.fixture(scope="module")
def environments() -> Any:
    budget = Budget(max_turns=3)
    with Environments(None, budget=budget, kernel=KernelSettings(parked=6), processes=1) as environments:
        yield environments


def rollouts_of(
    environments: Environments, template: Template, script: Script, folder: Path, **fields: Any
) -> Rollouts:
    recipe = Recipe(**{"group_size": 3, "groups": 2, "device_batch": 6, **fields})
    runner = Runner(environments, template, TOKENS)
    return Rollouts(POOL, recipe, runner, lambda trainer: scripted(template, script), Schedule(POOL, recipe), folder)


def prompts(*tasks: Task, size: int = 3) -> list[Any]:
    return [prompt_of(task) for task in tasks for _ in range(size)]


def test_two_tasks_that_share_a_prompt_are_judged_by_their_own_answers(
    environments: Environments, template: Template, tmp_path: Path
) -> None:
    rollouts = rollouts_of(environments, template, lambda text: answer("42"), tmp_path)
    batch = prompts(*SAME)
    assert batch[0][0]["content"] == batch[3][0]["content"]
    output = rollouts(batch, TRAINER)
    assert output["reward_correct"] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert rollouts.metrics["groups/zero_variance"] == 1.0 and rollouts.metrics["pass/all"] == 0.5
    # The episodes lie where `jupyter-env view` finds them, under ids of their own.
    records = list(read_records(tmp_path / "step-00003" / "episodes.jsonl"))
    assert len({record.id for record in records}) == 6
    assert [record.task_id for record in records] == ["right"] * 3 + ["wrong"] * 3
    with pytest.raises(RecipeError, match="no `task_id`"):
        task_id_of([{"role": "user", "content": QUESTION}])
    with pytest.raises(RecipeError, match="not whole groups"):
        rollouts(batch[1:], TRAINER)


def test_what_the_machine_fails_and_what_a_budget_cuts_is_not_learned_from(
    environments: Environments, template: Template, tmp_path: Path
) -> None:
    """A group: right, out of turns, and failed by the machine."""
    seen: list[str] = []

    def script(text: str) -> str:
        if turns_so_far(text) == 0:
            seen.append(text)
            if len(seen) == 3:
                raise MemoryError("the third conversation")
        return answer("42") if len(seen) == 1 else run("1")

    for truncated, masked in (("masked", True), ("scored", False)):
        seen.clear()
        rollouts = rollouts_of(environments, template, script, tmp_path, truncated=truncated, groups=1, device_batch=3)
        generator = scripted(template, script)
        generator.slots, generator.patience = 1, 0.0
        rollouts._open_generator = lambda trainer, generator=generator: generator  # type: ignore[misc]
        output = rollouts(prompts(SAME[0]), TRAINER)
        assert output["reward_correct"] == [1.0, 0.0, None]
        right, cut, failed = output["env_mask"]
        assert set(right) == {1} and set(failed) == {0}
        assert (sum(cut) == 0) is masked
        for ids, mask, logprobs in zip(output["completion_ids"], output["env_mask"], output["logprobs"], strict=True):
            assert len(ids) == len(mask) == len(logprobs) > 0
        assert rollouts.metrics["episodes/failed"] == pytest.approx(1 / 3)
        assert rollouts.metrics["episodes/truncated"] == 0.5
        assert rollouts.metrics["stop/turn_limit"] == pytest.approx(1 / 3)


def test_a_machine_that_fails_everything_ends_the_run(
    environments: Environments, template: Template, tmp_path: Path
) -> None:
    def script(text: str) -> str:
        raise ConnectionError("the server is gone")

    rollouts = rollouts_of(environments, template, script, tmp_path)
    with pytest.raises(InfrastructureError, match=r"failed all 6 episodes of step 3.*the server is gone"):
        rollouts(prompts(*SAME), TRAINER)


def test_groups_that_teach_nothing_are_replaced(environments: Environments, template: Template, tmp_path: Path) -> None:
    """A group that is all right gives its place to one of unlike rewards, and only so many are tried."""
    counted: dict[str, int] = {}

    def script(text: str) -> str:
        question = text.partition("user\n")[2].partition("<|im_end|>")[0]
        counted[question] = counted.get(question, 0) + 1
        return answer("42") if QUESTION in question or counted[question] % 3 else answer(question[8:-1])

    rollouts = rollouts_of(environments, template, script, tmp_path, replaced_groups=4)
    output = rollouts(prompts(SAME[0], POOL[2]), TRAINER)
    figures = rollouts.metrics
    assert figures["groups/zero_variance"] == 0.5 and 1 <= figures["groups/replaced"] <= 4
    assert len(output["completion_ids"]) == 6
    if figures["groups/zero_variance_after"] == 0.0:
        first, second = output["reward_correct"][:3], output["reward_correct"][3:]
        assert len(set(first)) > 1 and len(set(second)) > 1
    episodes = list(read_records(tmp_path / "step-00003" / "episodes.jsonl"))
    assert len(episodes) == 6 + 3 * figures["groups/replaced"]


def test_the_curriculum_moves_the_levels() -> None:
    levels = ("easy", "expert")
    pool = TaskPool(
        [
            Task(id=f"{level}{n}", question="?", answer=Integer(value=1), level=level)
            for level in levels
            for n in range(9)
        ]
    )
    curriculum = Curriculum(start={"easy": 1.0}, end={"expert": 1.0})
    recipe = Recipe(steps=30, groups=8, curriculum=curriculum)
    tasks = Schedule(pool, recipe).tasks()
    assert tasks == Schedule(pool, recipe).tasks() and len(tasks) == 240
    steps = [tasks[at : at + 8] for at in range(0, 240, 8)]
    shares = [sum(task.level == "expert" for task in step) / 8 for step in steps]
    assert shares[0] == 0.0 and shares[-1] == 1.0 and 0.3 < sum(shares) / 30 < 0.7
    easy = [task.id for task in tasks if task.level == "easy"]
    assert len(set(easy[:9])) == 9  # none again before all have come
    with pytest.raises(RecipeError, match="the curriculum wants"):
        Schedule(pool, Recipe(curriculum=Curriculum(start={"hard": 1.0}, end={"hard": 1.0})))


def test_tasks_that_cannot_be_rewarded_are_refused() -> None:
    invented = Task(id="i", question="?", answer=Integer(value=1), provenance="simulated")
    with pytest.raises(RecipeError, match="come from outputs that a model invented, 'i'"):
        check_tasks(TaskPool([invented]), allow_simulated=False)
    check_tasks(TaskPool([invented]), allow_simulated=True)
    with pytest.raises(RecipeError, match="answers that their owner keeps, 'h'"):
        check_tasks(TaskPool([Task(id="h", question="?", answer=Hidden())]), allow_simulated=False)
