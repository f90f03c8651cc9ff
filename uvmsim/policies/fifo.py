"""FIFO and CLOCK (second chance), which is FIFO with reinsertion."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, in_use, pool_of
from uvmsim.policies.rings import Rings, new_rings, ring_free, ring_push, ring_turn


class FIFO(Eviction):
    """Evict the expert that was loaded first."""

    name = "fifo"
    source = "Belady 1966"
    reads = frozenset()

    def state(self, ctx):
        return new_rings(ctx)

    @staticmethod
    def on_insert(s, pool, e, i):
        ring_push(s, pool, e)

    @staticmethod
    def on_evict(s, pool, e):
        ring_turn(s, pool, pool_of(pool, e))

    @staticmethod
    def victim(s, pool, p):
        return ring_free(s, pool, p)


class State(NamedTuple):
    """rings: one FIFO a pool; used: uint8 [n_total], the reference bit."""

    rings: Rings
    used: np.ndarray


class Clock(Eviction):
    """FIFO where a used expert gets a second round; a new one enters with its bit clear."""

    name = "clock"
    source = "Corbato 1968; one bit, as libCacheSim's Clock"
    reads = frozenset()

    def state(self, ctx):
        return State(new_rings(ctx), np.zeros(ctx.n_total, np.uint8))

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            s.used[e] = 1

    @staticmethod
    def on_insert(s, pool, e, i):
        s.used[e] = 0
        ring_push(s.rings, pool, e)

    @staticmethod
    def on_evict(s, pool, e):
        ring_turn(s.rings, pool, pool_of(pool, e))

    @staticmethod
    def victim(s, pool, p):
        lo, room = pool.lo[p], pool.lo[p + 1] - pool.lo[p]
        j = s.rings.head[p]
        e = s.rings.at[np.uint64(lo + j)]
        while s.used[e] == 1 and not in_use(pool, e):
            s.used[e] = 0
            j = j + 1 if j + 1 < room else 0
            e = s.rings.at[np.uint64(lo + j)]
        s.rings.head[p] = j
        if not in_use(pool, e):
            return np.int64(e)
        free = ring_free(s.rings, pool, p)
        while free >= 0 and s.used[free] == 1:
            s.used[free] = 0
            ring_turn(s.rings, pool, p)
            free = ring_free(s.rings, pool, p)
        return free
