"""The kinds of questions that the generator asks, in files by idea; each family states its level."""

from __future__ import annotations

from jupyter_env.tasksets.drafts import Family
from jupyter_env.tasksets.families import (
    cleaning,
    groups,
    relations,
    reshaping,
    scores,
    selections,
    series,
    stages,
)

FAMILIES: tuple[Family, ...] = (
    *selections.FAMILIES,
    *groups.FAMILIES,
    *reshaping.FAMILIES,
    *relations.FAMILIES,
    *cleaning.FAMILIES,
    *scores.FAMILIES,
    *series.FAMILIES,
    *stages.FAMILIES,
)
