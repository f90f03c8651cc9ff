"""Who is being served: a track for each of the sequences seen last.

A sequence that finds no free track takes the one that was silent longest. It is live while it has not
been silent for longer than ever before: one that is served every forward pass is dropped at the first
one without it, one of two users that alternate is not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.core.jit import inlined


class Tracks(NamedTuple):
    """seq: int64 [N], -1 free; seen: int64 [N], forward pass it was in last; gap: int64 [N], most
    passes between two of its; last: int64 [N], its last token; now: int64 [1], the newest track."""

    seq: np.ndarray
    seen: np.ndarray
    gap: np.ndarray
    last: np.ndarray
    now: np.ndarray


def new_tracks(n: int) -> Tracks:
    """``n`` free tracks."""
    return Tracks(
        np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.zeros(n, np.int64),
        np.full(n, -1, np.int64), np.zeros(1, np.int64),
    )  # fmt: skip


@inlined
def find_track(tr, seq):
    """The track of a sequence, -1 if it has none."""
    if tr.seq[tr.now[0]] == seq:
        return tr.now[0]
    for n in range(tr.seq.size):
        if tr.seq[n] == seq:
            return np.int64(n)
    return np.int64(-1)


@inlined
def free_track(tr):
    """The track for a new sequence: a free one, or that of the sequence silent longest."""
    best = np.int64(0)
    for n in range(tr.seq.size):
        if tr.seq[n] < 0:
            return np.int64(n)
        if tr.seen[n] < tr.seen[best]:
            best = np.int64(n)
    return best


@inlined
def begin_track(tr, n, seq, step):
    """Give track ``n`` to a sequence."""
    tr.seq[n] = seq
    tr.seen[n] = step
    tr.gap[n] = 0
    tr.last[n] = -1


@inlined
def touch_track(tr, n, step, token):
    """Track ``n`` is served in this forward pass; ``token`` is its newest."""
    tr.gap[n] = max(tr.gap[n], step - tr.seen[n])
    tr.seen[n] = step
    tr.last[n] = token
    tr.now[0] = n


@inlined
def is_live(tr, n, step):
    """Whether track ``n`` is expected again."""
    return tr.seq[n] >= 0 and step - tr.seen[n] <= tr.gap[n]
