"""Degenerate loops: a model that says the same few tokens again and again.

Such text is easy on any cache that remembers, so a share of a gap measured on it flatters. What a
token is, is told by its id where the trace has ids, else by the set of experts it chose in the first
MoE layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from traces.routing.by_token import DenseRouting

LONGEST = 128
"""Tokens of the longest loop that is looked for."""
LEAST = 32
"""Tokens that a loop must go on for, at least, after its first time round..."""
ROUNDS = 2
"""... and times round, after the first."""
ALIKE = 0.8
"""Share of these tokens that must be as the loop's first: lists count up, and first-layer sets of one
token differ a little with what stands before it."""
TOO_MANY = 0.05
"""A sequence with a larger share of looped tokens is left out by ``trace filter --no-loops``."""


def identities(d: DenseRouting) -> np.ndarray:
    """A number that tells tokens apart: int64 [T]. Where a first-layer set is missing it is one of its
    own."""
    if d.token is not None and (d.token >= 0).all():
        return np.asarray(d.token, np.int64)
    sets = np.sort(d.ids[:, 0, :], axis=1)
    _, number = np.unique(sets, axis=0, return_inverse=True)
    number = number.reshape(-1).astype(np.int64)
    missing = sets[:, -1] < 0
    number[missing] = -1 - np.flatnonzero(missing)
    return number


def looped(d: DenseRouting) -> np.ndarray:
    """bool [T]: tokens in a loop. A loop of p tokens, up to `LONGEST`, is a stretch of one sequence, of
    `ROUNDS` times p tokens and at least `LEAST`, of which a share of `ALIKE` is each what the token p
    before is. Sequences must stand in one piece (`DenseRouting.by_sequence`)."""
    what = identities(d)
    n = len(what)
    marks = np.zeros(n + 1, np.int64)
    for p in range(1, min(LONGEST, n - 1) + 1):
        same = (what[p:] == what[:-p]) & (d.seq[p:] == d.seq[:-p])
        size = max(ROUNDS * p, LEAST)
        total = np.concatenate(([0], np.cumsum(same)))
        start = p + np.flatnonzero(total[size:] - total[:-size] >= ALIKE * size)
        start = start[d.seq[start - p] == d.seq[start + size - 1]]
        marks[start] += 1
        marks[start + size] -= 1
    return np.cumsum(marks[:-1]) > 0


def loops(d: DenseRouting) -> dict[str, Any]:
    """Looped tokens of a trace in plain JSON types: ``share``; ``told_by`` ``token ids`` or
    ``first-layer experts``; ``by_sequence`` {sequence: share}, in order of the sequences; ``sequences``
    and ``tokens``, how many and how long those are that have more than `TOO_MANY`."""
    d = d.by_sequence()
    hit = looped(d)
    seqs, first, size = np.unique(d.seq, return_index=True, return_counts=True)
    count = np.add.reduceat(hit, first, dtype=np.int64) if len(hit) else np.zeros(0, np.int64)
    share = count / np.maximum(size, 1)
    has_ids = d.token is not None and bool((d.token >= 0).all())
    return {
        "share": float(hit.mean()) if len(hit) else 0.0,
        "told_by": "token ids" if has_ids else "first-layer experts",
        "by_sequence": {str(s): float(x) for s, x in zip(seqs, share, strict=True)},
        "sequences": int((share > TOO_MANY).sum()),
        "tokens": int(size[share > TOO_MANY].sum()),
    }
