"""Binary heaps over expert ids, one a pool: the least key first, any member removable."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Context, in_use
from uvmsim.policies.lists import inner


class Heaps(NamedTuple):
    """at: uint32 [slots], members, pool p's from lo[p] on; place: int64 [n_total], where in its
    pool's heap a member is, -1 if absent; key: int64 [n_total]; size: int64 [pools]."""

    at: np.ndarray
    place: np.ndarray
    key: np.ndarray
    size: np.ndarray


def new_heaps(ctx: Context) -> Heaps:
    """Empty heaps for every pool."""
    return Heaps(
        np.zeros(int(ctx.capacity.sum()), np.uint32), np.full(ctx.n_total, -1, np.int64),
        np.zeros(ctx.n_total, np.int64), np.zeros(len(ctx.capacity), np.int64),
    )  # fmt: skip


@inner
def _settle(h, lo, n, e, j):
    """Put ``e`` at place ``j`` or wherever its key belongs from there."""
    key = h.key[e]
    while j > 0 and h.key[h.at[lo + (j - 1) // 2]] > key:
        parent = h.at[lo + (j - 1) // 2]
        h.at[lo + j] = parent
        h.place[parent] = j
        j = (j - 1) // 2
    while 2 * j + 1 < n:
        c = 2 * j + 1
        if c + 1 < n and h.key[h.at[lo + c + 1]] < h.key[h.at[lo + c]]:
            c += 1
        child = h.at[lo + c]
        if h.key[child] >= key:
            break
        h.at[lo + j] = child
        h.place[child] = j
        j = c
    h.at[lo + j] = e
    h.place[e] = j


@inner
def heap_set(h, pool, p, e, key):
    """Add ``e``, or change its key."""
    h.key[e] = key
    j = h.place[e]
    if j < 0:
        j = h.size[p]
        h.size[p] += 1
    _settle(h, pool.lo[p], h.size[p], e, j)


@inner
def heap_remove(h, pool, p, e):
    """Take ``e`` out."""
    j = h.place[e]
    h.place[e] = -1
    h.size[p] -= 1
    if j < h.size[p]:
        _settle(h, pool.lo[p], h.size[p], h.at[pool.lo[p] + h.size[p]], j)


@inner
def heap_least_free(h, pool, p):
    """The member of least key that is not in use, -1 if none; a look at all where the first is."""
    lo, n = pool.lo[p], h.size[p]
    best = np.int64(-1)
    for j in range(n):
        e = np.int64(h.at[lo + j])
        if not in_use(pool, e) and (best < 0 or h.key[e] < h.key[best]):
            if j == 0:
                return e
            best = e
    return best
