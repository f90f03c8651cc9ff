"""What a forward pass of several sequences, or with drafts, came to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.files.schema import NO_DRAFT, REJECTED
from traces.routing.by_token import run_bounds
from traces.routing.rows import Rows


@dataclass(frozen=True)
class StepCounts:
    """By step; int32 [S] unless said otherwise."""

    emitted: np.ndarray
    """Tokens that were kept: all but rejected drafts."""
    sequences: np.ndarray
    """Sequences that the step had tokens of."""
    drafts: np.ndarray
    """Most drafted tokens of one sequence: passes of a drafter that serves all at once."""
    held: np.ndarray
    """int64 [S]: longest context of each sequence, summed: tokens in the KV cache."""


def step_counts(t: Rows) -> StepCounts:
    """Of the tokens in each step's first layer. Steps ascend."""
    first = run_bounds(t.step, t.layer)
    begins = np.concatenate(([True], np.diff(np.asarray(t.step)[first[:-1]]) != 0))
    runs = np.flatnonzero(begins)
    rows = np.concatenate([np.arange(first[i], first[i + 1]) for i in runs])
    of = np.repeat(np.arange(len(runs)), first[runs + 1] - first[runs])
    draft = np.asarray(t.draft)[rows] if t.draft is not None else np.zeros(len(rows), np.uint8)
    n = len(runs)
    emitted = np.bincount(of[draft != REJECTED], minlength=n)
    seq, pos = np.asarray(t.seq)[rows], np.asarray(t.pos)[rows].astype(np.int64)
    order = np.lexsort((pos, seq, of))
    of, seq, pos, draft = of[order], seq[order], pos[order], draft[order]
    groups = run_bounds(of, seq)
    owner = of[groups[:-1]]
    held = np.zeros(n, np.int64)
    np.add.at(held, owner, pos[groups[1:] - 1] + 1)
    drafts = np.zeros(n, np.int64)
    np.maximum.at(drafts, owner, np.add.reduceat((draft != NO_DRAFT).astype(np.int64), groups[:-1]))
    return StepCounts(
        emitted.astype(np.int32), np.bincount(owner, minlength=n).astype(np.int32),
        drafts.astype(np.int32), held,
    )  # fmt: skip
