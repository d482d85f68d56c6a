"""A recipe: all the settings of a run, a TOML file in `recipes/` or anywhere."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from pipeline.export import ExportSettings
from pipeline.kaggle import FetchSettings
from pipeline.matching import MatchSettings
from pipeline.models import ModelSettings
from pipeline.notebook import MAX_BYTES
from pipeline.stages.ask import AskSettings
from pipeline.stages.check import CheckSettings
from pipeline.stages.curate import CurateSettings
from pipeline.stages.rules import RuleSettings
from pipeline.stages.traces import TraceSettings

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe that does not exist or has a setting that none has."""


class Slurm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how long a Slurm job runs; `sbatch` knows what each means."""

    partition: str = "cpu"
    time: str = "20:00:00"
    qos: str = ""
    mem_per_cpu_gb: int = 4
    cpus_per_task: int = 1
    tasks_per_job: int = 1
    tasks: int = 0
    """In place of the recipe's number of tasks, for jobs that take a GPU each; 0 leaves that."""
    env_command: str = ""
    """A shell line that puts the right Python on the PATH."""
    sbatch_args: dict[str, str] = {}


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a run."""

    where: str = "local"
    """`local`, `slurm` or `ray`."""
    tasks: int = 2
    """Into how many tasks each stage is cut."""
    workers: int = 2
    """How many of them run at a time; -1 for all."""
    max_bytes: int = MAX_BYTES
    """Larger notebooks are rejected unread."""
    max_failed: float = 0.05
    """A stage of whose items a larger share failed stops the run: that is no accident of single notebooks."""
    missing_data: str = "reject"
    """What becomes of notebooks whose tables are not here: `reject`, or `keep`, to have their traces simulated."""
    near: MatchSettings = MatchSettings()
    rules: RuleSettings = RuleSettings()
    fetch: FetchSettings = FetchSettings()
    ask: AskSettings = AskSettings()
    check: CheckSettings = CheckSettings()
    traces: TraceSettings = TraceSettings()
    curate: CurateSettings = CurateSettings()
    export: ExportSettings = ExportSettings()
    asker: ModelSettings = ModelSettings()
    """Scores, writes questions and reads them again."""
    teacher: ModelSettings = ModelSettings()
    """Works on the questions."""
    simulator: ModelSettings = ModelSettings()
    """Stands in for the interpreter where tables are missing; by default the asker."""
    slurm: Slurm = Slurm()
    asker_slurm: Slurm | None = None
    """Of the jobs that ask the asker, where its server is started in each task (`asker.serve`)."""
    teacher_slurm: Slurm | None = None

    def __post_init__(self) -> None:
        if self.where not in ("local", "slurm", "ray"):
            raise ValueError(f"where is {self.where!r}; expected local, slurm or ray")
        if self.missing_data not in ("reject", "keep"):
            raise ValueError(f"missing_data is {self.missing_data!r}; expected reject or keep")

    @property
    def last_stage(self) -> str:
        """How far a run can come: without a model there is nothing to ask."""
        return "export" if self.asker.name else "render"

    @property
    def replies_depend_on(self) -> dict[str, Any]:
        """The settings, less where, how fast and with how many workers all of it runs."""
        settings: dict[str, Any] = msgspec.to_builtins(self)
        for name in ("where", "workers", "tasks", "slurm", "asker_slurm", "teacher_slurm"):
            settings.pop(name)
        for name in ("asker", "teacher", "simulator"):
            settings[name] = getattr(self, name).identity
        for name in ("ask", "check", "traces"):
            settings[name].pop("in_flight")
        return settings


def load_recipe(name: str) -> Recipe:
    """A recipe by its name (`laptop`) or its path.

    Raises:
        RecipeError: it does not exist, or a setting in it is unknown or of the wrong type.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in RECIPES.glob("*.toml")))
        raise RecipeError(f"there is no recipe {name!r}; expected one of {known}, or the path of a .toml file")
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), Recipe)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise RecipeError(f"{path}: {error}") from None
