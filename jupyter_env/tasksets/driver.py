"""Running many snippets of reference code in one cell.

A kernel round trip costs more than most snippets, so a batch travels as one cell that runs each snippet in a
namespace of its own, catches what it prints and reports one JSON line per snippet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import msgspec

Execute = Callable[[str], str]
"""Runs Python code in a kernel whose working folder holds the tables at `data/<path>`.

Returns what the code printed; raises on an error in the code or in the kernel."""

BATCH_SIZE = 250


class Snippet(msgspec.Struct, frozen=True, kw_only=True):
    """Code that prints an answer, and expressions that must then be true of its variables."""

    code: str
    checks: tuple[tuple[str, str], ...] = ()
    """Pairs of the reason to reject and the expression. Expressions may call `clear_ranks` and `clear_kth` "
    "of the driver."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one snippet."""

    printed: str = ""
    """Its last line that is not blank."""
    failure: str = ""
    """The reason of the first check that failed, or "the code failed"."""
    error: str = ""
    """Type and message of the exception, if the code or a check raised one."""


def run_snippets(snippets: Sequence[Snippet], execute: Execute) -> list[Outcome]:
    """One outcome per snippet, in order.

    Raises:
        RuntimeError: the driver's report is not complete, so `execute` does not return all that was printed.
    """
    outcomes: list[Outcome] = []
    for start in range(0, len(snippets), BATCH_SIZE):
        batch = snippets[start : start + BATCH_SIZE]
        printed = execute(_cell(batch))
        lines = [line for line in printed.splitlines() if line.startswith('{"printed":')]
        if len(lines) != len(batch):
            raise RuntimeError(
                f"sent {len(batch)} snippets, got {len(lines)} reports; execute() must return all output"
            )
        outcomes += [msgspec.json.decode(line, type=Outcome) for line in lines]
    return outcomes


def _cell(batch: Sequence[Snippet]) -> str:
    payload = json.dumps([(snippet.code, snippet.checks) for snippet in batch])
    return f"{_DRIVER}\n_run_batch({payload!r})\n"


_DRIVER = '''
import contextlib, io, json, warnings
import pandas


def clear_ranks(values, k, largest=True):
    """Whether each of the first k of the ranked values is apart from the next by more than float noise."""
    ranked = values.dropna().sort_values(ascending=not largest).head(k + 1).astype(float)
    scale = max(ranked.abs().max(), 1e-300)
    return len(ranked) > k and bool((ranked.diff().abs().iloc[1:] > 1e-6 * scale).all())


def clear_kth(values, k, largest=True):
    """Whether the kth of the ranked values is apart from the next, so that the first k are one set."""
    ranked = values.dropna().sort_values(ascending=not largest).astype(float)
    return abs(ranked.iloc[k - 1] - ranked.iloc[k]) > 1e-6 * max(ranked.abs().max(), 1e-300)


def _caching(read_csv):
    frames = {}

    def read(*args, **options):
        key = repr((args, sorted(options.items())))
        if key not in frames:
            frames[key] = read_csv(*args, **options)
        return frames[key].copy()

    return read


def _holds(test, names):
    return eval(test, {**names, "clear_ranks": clear_ranks, "clear_kth": clear_kth})


def _cause(checks, names):
    """Code also fails because of what a check would have found, such as an empty selection."""
    for reason, test in checks:
        with contextlib.suppress(Exception):
            if not _holds(test, names):
                return reason
    return "the code failed"


def _run_one(code, checks):
    printed = io.StringIO()
    report = {"printed": "", "failure": "", "error": ""}
    names = {"__name__": "__main__"}
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        report["failure"] = next((reason for reason, test in checks if not _holds(test, names)), "")
    except Exception as error:
        report.update(failure=_cause(checks, names), error=f"{type(error).__name__}: {error}"[:500])
    lines = [line for line in printed.getvalue().splitlines() if line.strip()]
    report["printed"] = lines[-1].strip()[:5000] if lines else ""
    return report


def _run_batch(payload):
    read_csv = pandas.read_csv
    pandas.read_csv = _caching(read_csv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for code, checks in json.loads(payload):
                print(json.dumps(_run_one(code, checks), separators=(",", ":")))
    finally:
        pandas.read_csv = read_csv
'''
