"""LRU-2: who was used once only goes first, then whose last use but one is oldest."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, pool_of
from uvmsim.policies.heaps import Heaps, heap_least_free, heap_remove, heap_set, new_heaps
from uvmsim.policies.lists import Lists, end_of, new_lists, oldest_free, push_tail, unlink


class State(NamedTuple):
    """links: FIFO of those used once; heaps: the others by their last use but one; last: int64
    [n_total], last use; tick: int64 [1]."""

    links: Lists
    heaps: Heaps
    last: np.ndarray
    tick: np.ndarray


class LRUK(Eviction):
    """LRU by the last use but one (K = 2); uses before it was loaded are forgotten."""

    name = "lru-k"
    source = "O'Neil, O'Neil and Weikum 1993, K = 2; history kept while resident, as libCacheSim"
    reads = frozenset()

    def state(self, ctx):
        return State(
            new_lists(ctx), new_heaps(ctx), np.zeros(ctx.n_total, np.int64), np.zeros(1, np.int64)
        )

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            if s.heaps.place[e] < 0:
                unlink(s.links, e)
            heap_set(s.heaps, pool, pool_of(pool, e), e, s.last[e])
            s.tick[0] += 1
            s.last[e] = s.tick[0]

    @staticmethod
    def on_insert(s, pool, e, i):
        s.tick[0] += 1
        s.last[e] = s.tick[0]
        push_tail(s.links, end_of(pool, 0, pool_of(pool, e)), e)

    @staticmethod
    def on_evict(s, pool, e):
        if s.heaps.place[e] < 0:
            unlink(s.links, e)
        else:
            heap_remove(s.heaps, pool, pool_of(pool, e), e)

    @staticmethod
    def victim(s, pool, p):
        e = oldest_free(s.links, pool, end_of(pool, 0, p))
        return e if e >= 0 else heap_least_free(s.heaps, pool, p)
