"""A recipe: all the settings of a run, a TOML file in `recipes/` or anywhere."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from pipeline.matching import MatchSettings
from pipeline.notebook import MAX_BYTES
from pipeline.stages.rules import RuleSettings

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
    env_command: str = ""
    """A shell line that puts the right Python on the PATH."""
    sbatch_args: dict[str, str] = {}


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
    near: MatchSettings = MatchSettings()
    rules: RuleSettings = RuleSettings()
    fetch: FetchSettings = FetchSettings()
    slurm: Slurm = Slurm()

    def __post_init__(self) -> None:
        if self.where not in ("local", "slurm", "ray"):
            raise ValueError(f"where is {self.where!r}; expected local, slurm or ray")


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
