"""Which of several copies is kept: outputs before none, no errors before errors, then votes, then more outputs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

COLUMNS = ["cells_with_output", "errors", "votes"]


def order_of_merit(table: pa.Table) -> np.ndarray:
    """(rows) The place of each row when all are sorted from best to worst; ties go to the earlier row."""
    outputs, errors, votes = (table[name].fill_null(0).to_numpy().astype(np.int64) for name in COLUMNS)
    order = np.lexsort((-outputs, -votes, errors > 0, outputs == 0))
    merit = np.empty(len(order), dtype=np.int64)
    merit[order] = np.arange(len(order))
    return merit


def best_of_groups(groups: np.ndarray, merit: np.ndarray) -> np.ndarray:
    """(rows) For each row the number of the best row of its group."""
    order = np.lexsort((merit, groups))
    sorted_groups = groups[order]
    starts = np.flatnonzero(np.r_[True, sorted_groups[1:] != sorted_groups[:-1]])
    lengths = np.diff(np.r_[starts, len(order)])
    best = np.empty(len(order), dtype=np.int64)
    best[order] = np.repeat(order[starts], lengths)
    return best
