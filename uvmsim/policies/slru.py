"""SLRU: a ladder of LRU segments; a use moves an expert one segment up."""

from typing import Any, ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, pool_of
from uvmsim.policies.queues import Queues, drop, first_free, head, new_queues, put


class State(NamedTuple):
    """q: a queue a segment, 0 the lowest; room: int64 [segments, pools]."""

    q: Queues
    room: np.ndarray


class SLRU(Eviction):
    """Evict the oldest of the lowest segment; what overflows a segment sinks one down."""

    name = "slru"
    source = "Karedla, Love and Wherry 1994; four equal segments filled from below, as libCacheSim"
    reads = frozenset()
    segments: int = 4
    """2 are the paper's probationary and protected segment."""
    search: ClassVar[dict[str, Any]] = {"segments": (2, 8)}

    def state(self, ctx):
        room = np.tile(ctx.capacity // self.segments, (self.segments, 1))
        room[0] += ctx.capacity - room.sum(axis=0)
        return State(new_queues(ctx, self.segments), room)

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            p = pool_of(pool, e)
            k = min(np.int64(s.q.where[e]) + 1, len(s.room) - 1)
            put(s.q, pool, k, e)
            while k > 0 and s.q.size[k, p] > s.room[k, p]:
                put(s.q, pool, k - 1, head(s.q, pool, k, p))
                k -= 1

    @staticmethod
    def on_insert(s, pool, e, i):
        p = pool_of(pool, e)
        k = 0
        while k + 1 < len(s.room) and s.q.size[k, p] >= s.room[k, p]:
            k += 1
        put(s.q, pool, k, e)

    @staticmethod
    def on_evict(s, pool, e):
        drop(s.q, pool, e)

    @staticmethod
    def victim(s, pool, p):
        for k in range(len(s.room)):
            e = first_free(s.q, pool, k, p)
            if e >= 0:
                return e
        return -1
