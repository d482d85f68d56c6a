"""The stages that have a ledger, in their order."""

from __future__ import annotations

from pipeline.stage import Stage
from pipeline.stages.ask import Ask
from pipeline.stages.check import Check
from pipeline.stages.curate import Curate
from pipeline.stages.data import Data
from pipeline.stages.exact import Exact
from pipeline.stages.fetch import Fetch
from pipeline.stages.near import Near
from pipeline.stages.read import Read
from pipeline.stages.render import Render
from pipeline.stages.rules import Rules
from pipeline.stages.traces import Traces
from pipeline.stages.unique import Unique

CLASSES: tuple[type[Stage], ...] = (
    *(Read, Exact, Near, Rules, Fetch, Data, Render),
    *(Ask, Check, Unique, Traces, Curate),
)
STAGES = tuple(stage.name for stage in CLASSES)
"""Those that have a ledger; `fetch` counts data sets, `check`, `unique` and `traces` questions, `curate` traces, the
others notebooks."""
