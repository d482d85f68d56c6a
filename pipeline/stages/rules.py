"""Stage 4: what no model need be asked about. The first rule that speaks gives the reason."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pyarrow as pa

from pipeline.language import other_language
from pipeline.reads import Reads, find_reads
from pipeline.run_folder import RunFolder
from pipeline.stage import Item, Rejected, Row, Stage
from pipeline.stages.read import SCHEMA as READ_SCHEMA


class RuleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bounds of the rules."""

    min_code_cells: int = 3
    """Fewer cells hold no analysis to ask several steps about."""
    min_code_chars: int = 200
    max_code_chars: int = 300_000
    """More is generated or pasted, not written."""
    ids_file: str = ""
    """A text file of KernelVersions.Id, one a line, of which a notebook must be one: a published list (BigCode's)."""


_MODEL_TRAINING = {
    "peft",
    "trl",
    "bitsandbytes",
    "unsloth",
    "vllm",
    "llama_cpp",
    "deepspeed",
    "axolotl",
    "xtuner",
    "autotrain",
}
_MODEL_CODE = re.compile(
    r"\b(?:AutoModelForCausalLM|AutoModelForSeq2SeqLM|Seq2SeqTrainer|SFTTrainer|GPTQConfig|LoraConfig|TrainingArguments"
    r"|LlamaForCausalLM|GPT2LMHeadModel|FastLanguageModel|keras_nlp\.models\.Gemma\w*)\b"
)

SCHEMA = pa.schema(
    [
        *READ_SCHEMA,
        ("reads", pa.list_(pa.string())),
        ("urls", pa.list_(pa.string())),
        ("packages", pa.list_(pa.string())),
    ]
)


class Rules(Stage):
    """Rejects by language, size, outputs, data read, training of language models."""

    name = "rules"
    version = 1
    upstream = "near"
    schema = SCHEMA
    takes_over = True

    def __init__(self, folder: RunFolder, settings: RuleSettings = RuleSettings()) -> None:  # noqa: B008
        super().__init__(folder)
        self.settings = settings
        self._allowed: frozenset[int] | None = None

    def config(self) -> Any:
        """The bounds."""
        return msgspec.to_builtins(self.settings)

    def decide(self, item: Item) -> Row | Rejected:
        """The first rule that rejects, cheap ones first."""
        row: Row = item.payload
        early = self._listed(row) or self._form(row) or _prose(row)
        if early:
            return early
        reads = find_reads(row["code"])
        late = _syntax(reads) or _model_training(row, reads) or _data(reads)
        return late or {**row, "reads": reads.files, "urls": reads.urls, "packages": reads.packages}

    def _listed(self, row: Row) -> Rejected | None:
        if not self.settings.ids_file:
            return None
        if self._allowed is None:
            with open(self.settings.ids_file, encoding="ascii") as lines:  # noqa: PTH123
                self._allowed = frozenset(int(line) for line in lines if line.strip())
        return None if row["kernel_version"] in self._allowed else Rejected("not_in_list")

    def _form(self, row: Row) -> Rejected | None:
        settings, code = self.settings, row["code"]
        cells, chars = sum(bool(source.strip()) for source in code), sum(map(len, code))
        if row["language"] not in ("", "python"):
            return Rejected("not_python", row["language"])
        if not cells:
            return Rejected("only_markdown" if row["markdown_cells"] else "no_code")
        if cells < settings.min_code_cells or chars < settings.min_code_chars:
            return Rejected("too_short", f"{cells} code cells, {chars:,} characters")
        if chars > settings.max_code_chars:
            return Rejected("too_long", f"{chars:,} characters of code")
        if not row["cells_with_output"]:
            return Rejected("no_outputs")
        return None


_COMMENT = re.compile(r"(?m)(?:^|\s)#+ ?(.*)$")


def _prose(row: Row) -> Rejected | None:
    comments = " ".join(found for source in row["code"] for found in _COMMENT.findall(source))
    language = other_language(f"{row['markdown_sample']}\n{comments[:4000]}")
    return Rejected("not_english", language) if language else None


def _syntax(reads: Reads) -> Rejected | None:
    """Questions are answered in Python 3; a stray old print among new code does no harm."""
    if 4 * reads.python2 > reads.cells:
        return Rejected("python2", f"{reads.python2} of {reads.cells} cells")
    if 2 * reads.unparsed > reads.cells:
        return Rejected("not_python", f"{reads.unparsed} of {reads.cells} cells do not parse")
    return None


def _model_training(row: Row, reads: Reads) -> Rejected | None:
    packages = _MODEL_TRAINING.intersection(reads.packages)
    if packages:
        return Rejected("trains_language_models", f"imports {', '.join(sorted(packages))}")
    names = {name for source in row["code"] for name in _MODEL_CODE.findall(source)}
    return Rejected("trains_language_models", f"uses {', '.join(sorted(names))}") if names else None


def _data(reads: Reads) -> Rejected | None:
    if reads.files:
        return None
    if reads.urls:
        return Rejected("data_only_at_urls", reads.urls[0])
    if reads.packaged:
        return Rejected("only_packaged_data", ", ".join(reads.packaged))
    return Rejected("reads_no_data")
