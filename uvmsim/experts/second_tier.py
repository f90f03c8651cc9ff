"""Spare memory of other GPUs behind a pool: what leaves the pool goes there, what is asked for again
comes back from there.

An expert is in the pool or behind it, never in both. Behind, they stand in the order in which they
left; the one that left first makes room. So LRU with a tier of n places behind it holds what LRU with
n slots more holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.jit import compiled
from uvmsim.runs.plan import WRITEBACK

HOST = np.int8(0)
PEER = np.int8(1)
DROPPED = np.int8(2)
"""Where a copy comes from or goes to; DROPPED: a way out for which there is no place behind."""


@dataclass(frozen=True)
class Tiers:
    """Where the copies of a run come from and go to; C copies."""

    kind: np.ndarray
    """int8 [C]: as of a plan."""
    where: np.ndarray
    """int8 [C]: HOST, PEER or DROPPED."""
    also: np.ndarray
    """int64 [C]: the copy that took a returning expert out, -1 none."""
    gone: np.ndarray
    """int64 [C]: the expert that makes room behind for one that leaves, -1 none."""
    places: int
    """Behind the pool."""
    widest: int
    """Most copies of a wave."""


def by_tier(
    kind: np.ndarray,
    expert: np.ndarray,
    victim: np.ndarray,
    places: int,
    total: int,
    widest: int = 0,
) -> Tiers:
    """``kind``: int8 [C]; ``expert``, ``victim``: int32 [C] what each copy moves, and who lost the slot
    it fills. ``places``: how many experts stand behind; ``total``: how many there are."""
    where, also, gone = _walk(kind, expert, victim, np.int64(places), np.int64(total))
    return Tiers(kind, where, also, gone, places, widest)


@compiled(nogil=True)
def _walk(kind, expert, victim, places, total):
    n = len(kind)
    where = np.zeros(n, np.int8)
    also = np.full(n, -1, np.int64)
    gone = np.full(n, -1, np.int64)
    left = np.full(total, -1, np.int64)
    """By expert: the copy that took it out last, while it is behind."""
    out = np.full(total, -1, np.int64)
    """By expert: the latest way out of it in the plan."""
    order = np.empty(n, np.int64)
    oldest = newest = held = 0
    for c in range(n):
        e = expert[c]
        if kind[c] == WRITEBACK:
            out[e] = c
            continue
        if left[e] >= 0:
            where[c], also[c] = PEER, left[e]
            left[e] = -1
            held -= 1
        v = victim[c]
        if v < 0:
            continue
        if places == 0:
            where[out[v]] = DROPPED
            continue
        if held == places:
            while left[expert[order[oldest]]] != order[oldest]:
                oldest += 1
            left[expert[order[oldest]]] = -1
            gone[out[v]] = expert[order[oldest]]
            oldest += 1
            held -= 1
        where[out[v]] = PEER
        left[v] = out[v]
        order[newest] = out[v]
        newest += 1
        held += 1
    return where, also, gone
