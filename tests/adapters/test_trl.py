"""The environment for TRL's own loop: two tools and a reward, whatever is called and when."""

import inspect
from pathlib import Path

import pytest
from processes import eventually, kernel_processes

from jupyter_env import TaskPool
from jupyter_env.adapters.trl import TrlEnvironment, trl_environment, trl_rows
from jupyter_env.episode import Budget
from jupyter_env.interpreters import close_servers
from jupyter_env.task import TaskError


def test_its_tools_are_the_two(pool: TaskPool) -> None:
    """As TRL finds them: the class's public functions without `reset` and `get_reward`."""
    names = {name for name, _ in inspect.getmembers(TrlEnvironment, inspect.isfunction) if not name.startswith("_")}
    assert names - {"reset", "get_reward"} == {"execute_code", "final_answer"}


def test_the_schemas_that_trl_makes_of_them(pool: TaskPool) -> None:
    utils = pytest.importorskip("transformers.utils")
    for tool, argument in ((TrlEnvironment.execute_code, "code"), (TrlEnvironment.final_answer, "answer")):
        function = utils.get_json_schema(tool)["function"]
        assert function["description"] and function["parameters"]["required"] == [argument]
        assert function["parameters"]["properties"][argument]["description"]


def test_an_episode(pool: TaskPool, no_leaks: Path) -> None:
    environment = trl_environment(pool)()
    assert environment.get_reward() is None
    for row in trl_rows(pool)[:2]:
        assert environment.reset(**row) is None
        assert "data/" in row["prompt"][-1]["content"]
        assert environment.execute_code("import os; sum(len(names) for _, _, names in os.walk('data'))") == "1"
        assert "NameError" in environment.execute_code("y")  # as a notebook shows it
        assert "the code is empty" in environment.execute_code(" ")
        answer = {"rows": "2", "sizes": "4"}[row["task_id"]]
        assert "has ended" in environment.final_answer(answer)
        assert "has ended" in environment.execute_code("x")  # TRL asks on
        assert environment.get_reward() == (1.0 if row["task_id"] == "rows" else 0.0)
    with pytest.raises(TaskError, match="no task ''"):
        environment.reset()
    del environment
    close_servers()
    assert eventually(lambda: not kernel_processes())


def test_limits_and_a_lost_kernel_end_it(pool: TaskPool, no_leaks: Path) -> None:
    environment = trl_environment(pool, budget=Budget(max_turns=1))()
    environment.reset(task_id="sum")
    assert environment.execute_code("1 + 1").startswith("2")
    assert "has ended" in environment.final_answer("42") and environment.get_reward() == 0.0
    environment.reset(task_id="sum")
    assert "kernel died" in environment.execute_code("import os; os._exit(3)")
    assert environment.get_reward() == 0.0
    environment._running.close()
