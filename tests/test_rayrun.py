"""A run over a local Ray cluster of two nodes, real processes, one of which is killed midway."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_cli import cli

from jupyter_env import DataFile, Task, TaskError, TaskPool
from jupyter_env.answer import Integer
from jupyter_env.chat import ModelSetupError
from jupyter_env.episode import EpisodeRecord
from jupyter_env.rollout import plan, read_records
from jupyter_env.scripted import AGENTS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]


def scripted() -> Any:
    return AGENTS


def refused() -> Any:
    def make(task: Task, seed: int) -> Any:
        raise ModelSetupError("a wrong key")

    return {"refused": make}


@pytest.fixture
def pool(tmp_path: Path) -> TaskPool:
    root = tmp_path / "tables"
    root.mkdir()
    (root / "n.csv").write_text("n\n1\n2\n")
    code = "import pandas as pd\nimport time\ntime.sleep(0.3)\nprint(int(pd.read_csv('data/n.csv').n.sum()) + {i})"
    return TaskPool(
        [
            Task(
                id=f"t{i}",
                question="?",
                answer=Integer(value=3 + i),
                files=(DataFile.of("n.csv", root),),
                reference_code=code.format(i=i),
            )
            for i in range(40)
        ],
        root,
    )


def test_one_of_two_nodes_is_killed_and_every_episode_is_there_once(pool: TaskPool, tmp_path: Path) -> None:
    import ray
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    from jupyter_env.rayrun import rollout_on_ray

    cloudpickle.register_pickle_by_value(__import__(__name__))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    ended = 0

    def kill_one(record: EpisodeRecord) -> None:
        nonlocal ended
        ended += 1
        if ended == 8:
            cluster.remove_node(second, allow_graceful=False)

    out = tmp_path / "run" / "episodes.jsonl"
    options: dict[str, Any] = {"slots_per_node": 3}
    try:
        jobs = plan(pool, ["oracle"], 1)
        records = asyncio.run(rollout_on_ray(jobs, pool, scripted, out, on_record=kill_one, retries=3, **options))
        assert [record.reward for record in records] == [1.0] * 40, [record.error for record in records]
        assert Counter(record.id for record in read_records(out)) == {job.id: 1 for job in jobs}
        failures = list(read_records(out.with_name("failures.jsonl")))
        assert failures and all("was lost" in (record.error or "") for record in failures)
        assert all(record.attempt > 1 for record in records if record.id in {f.id.rsplit(".", 1)[0] for f in failures})
        pool[:3].save(tmp_path / "three.jsonl")
        command = ("rollout", "three.jsonl", "--agent", "oracle", "--ray", cluster.address, "--json", "--no-reports")
        done = cli(*command, cwd=tmp_path)
        assert done.returncode == 0 and '"correct": 3' in done.stdout, done.stderr
        with pytest.raises(ModelSetupError, match="a wrong key"):
            asyncio.run(rollout_on_ray(plan(pool, ["refused"], 1), pool, refused, out, **options))
    finally:
        ray.shutdown()
        cluster.shutdown()
        cloudpickle.unregister_pickle_by_value(__import__(__name__))


def test_no_cluster_is_one_clear_error(pool: TaskPool, tmp_path: Path) -> None:
    from jupyter_env.rayrun import rollout_on_ray

    with pytest.raises(TaskError, match="no Ray cluster"):
        asyncio.run(rollout_on_ray(plan(pool, ["oracle"], 1), pool, scripted, tmp_path / "e.jsonl", address="auto"))
