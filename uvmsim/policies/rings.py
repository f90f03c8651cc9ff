"""A queue a pool in a ring buffer: a quarter of the memory traffic of a linked list, for policies that
take from the oldest end only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Context, in_use, pool_of
from uvmsim.policies.lists import inner


class Rings(NamedTuple):
    """at: uint32 [slots], the ring of pool p from lo[p] on; head: int64 [pools], its oldest."""

    at: np.ndarray
    head: np.ndarray


def new_rings(ctx: Context) -> Rings:
    """Empty rings, each as long as its pool has slots."""
    return Rings(
        np.zeros(int(ctx.capacity.sum()), np.uint32), np.zeros(len(ctx.capacity), np.int64)
    )


@inner
def ring_push(r, pool, e):
    """Make ``e``, which just got a slot, the newest of its pool."""
    p = pool_of(pool, e)
    room = pool.lo[p + 1] - pool.lo[p]
    j = r.head[p] + pool.used[p] - 1
    r.at[np.uint64(pool.lo[p] + (j - room if j >= room else j))] = e


@inner
def ring_turn(r, pool, p):
    """The oldest of a full ring becomes the newest; or, if it is evicted next, it is gone."""
    j = r.head[p] + 1
    r.head[p] = 0 if j == pool.lo[p + 1] - pool.lo[p] else j


@inner
def ring_free(r, pool, p):
    """The oldest of a full ring that is not in use, moved past the older ones to the very front;
    -1 if there is none."""
    lo, room = pool.lo[p], pool.lo[p + 1] - pool.lo[p]
    at = r.head[p]
    e = r.at[np.uint64(lo + at)]
    if not in_use(pool, e):
        return np.int64(e)
    for skipped in range(1, room):
        at = 0 if at + 1 == room else at + 1
        e = r.at[lo + at]
        if not in_use(pool, e):
            for _ in range(skipped):
                before = room - 1 if at == 0 else at - 1
                r.at[lo + at] = r.at[lo + before]
                at = before
            r.at[lo + at] = e
            return np.int64(e)
    return np.int64(-1)
