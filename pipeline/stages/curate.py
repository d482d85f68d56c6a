"""Stage 11: the traces that are worth learning from. A wrong answer is no reason to go: it is flagged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import xxhash

from jupyter_env.episode import EpisodeRecord
from jupyter_env.interpreters.output import OutputLimits
from pipeline.conversation import conversation
from pipeline.excerpt import estimate_tokens
from pipeline.parts import read_rows
from pipeline.run_folder import RunFolder, Unit
from pipeline.stage import Item, Rejected, Row, Stage

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("question_id", pa.string()),
        ("notebook", pa.string()),
        ("attempt", pa.int32()),
        ("correct", pa.bool_()),
        ("simulated", pa.bool_()),
        ("tokens", pa.int32()),
        ("task", pa.string()),
        ("record", pa.string()),
    ]
)


class CurateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bounds of a good trace."""

    min_cells: int = 2
    """That ended well; with one cell nothing was looked at before it was computed."""
    max_turns: int = 25
    max_tokens: int = 32_768
    """By estimate, of the whole conversation: the published training length."""
    max_error_share: float = 0.5
    """Of the cells; some errors that are mended are worth learning from."""
    max_repeats: int = 1
    """Cells that were run before, letter by letter."""
    max_malformed: int = 1
    """Messages without a valid call."""
    limits: OutputLimits | None = None
    """Shorten outputs to these; none leaves them as the environment showed them."""
    allow_simulated: bool = False
    """Keep traces whose outputs a model invented."""


class Curate(Stage):
    """Rejects traces that are trivial, repeat themselves, mostly fail, have no answer or are too long."""

    name = "curate"
    version = 1
    upstream = "traces"
    schema = SCHEMA
    expands = "attempts"
    batch_items = 200

    def __init__(self, folder: RunFolder, settings: CurateSettings) -> None:
        super().__init__(folder)
        self.settings = settings

    def config(self) -> Any:
        """The bounds."""
        return msgspec.to_builtins(self.settings)

    def items(self, unit: Unit) -> Iterator[Item]:
        """The attempts, each with what the attempts before it on the same question ran."""
        for row in read_rows(self.run_folder.parts(self.upstream, unit.name)):
            before: set[tuple[str, ...]] = set()
            for attempt, record in enumerate(msgspec.json.decode(row["records"], type=list[EpisodeRecord])):
                codes = tuple(cell.code.strip() for cell in record.cells)
                key = xxhash.xxh3_128_hexdigest(msgspec.json.encode(record))
                yield Item(f"{row['id']}.t{attempt}", key, (row, attempt, record, codes in before))
                before.add(codes)

    def decide(self, item: Item) -> Row | Rejected:
        """The first bound that is broken gives the reason."""
        row, attempt, record, again = item.payload
        if rejected := self._by_its_course(record):
            return rejected
        if again:
            return Rejected("same_as_another_attempt")
        text = conversation(record, thinking=True, limits=self.settings.limits).text
        tokens = estimate_tokens(text)
        if tokens > self.settings.max_tokens:
            return Rejected("too_long", f"about {tokens:,} tokens")
        return {
            "id": item.id,
            "key": item.key,
            "question_id": row["id"],
            "notebook": row["notebook"],
            "attempt": attempt,
            "correct": bool(record.verdict and record.verdict.correct),
            "simulated": record.provenance == "simulated",
            "tokens": tokens,
            "task": row["task"],
            "record": msgspec.json.encode(record).decode(),
        }

    def _by_its_course(self, record: EpisodeRecord) -> Rejected | None:
        settings, cells = self.settings, record.cells
        if record.provenance == "simulated" and not settings.allow_simulated:
            return Rejected("simulated")
        if record.stop_reason != "answered":
            return Rejected("no_answer", str(record.stop_reason))
        well = sum(cell.status == "ok" for cell in cells)
        if cells and not well:
            return Rejected("only_errors")
        if well < settings.min_cells:
            return Rejected("trivial", f"{well} cells ended well")
        if len(cells) - well > settings.max_error_share * len(cells):
            return Rejected("mostly_errors", f"{len(cells) - well} of {len(cells)} cells")
        repeats = sum(count - 1 for count in Counter(cell.code.strip() for cell in cells).values())
        if repeats > settings.max_repeats:
            return Rejected("repeats_itself", f"{repeats} cells were run before")
        if record.malformed_turns > settings.max_malformed:
            return Rejected("malformed_calls", f"{record.malformed_turns}")
        if record.turns > settings.max_turns:
            return Rejected("too_many_turns", f"{record.turns}")
        return None
