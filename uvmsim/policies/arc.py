"""ARC: balances recency against frequency by what it evicted too early."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, pool_of
from uvmsim.policies.queues import NOWHERE, Queues, drop, first_free, head, new_queues, put

T1, T2, B1, B2 = range(4)


class State(NamedTuple):
    """q: T1, T2 (resident) and B1, B2 (ghosts); target: float64 [pools], wanted size of T1; ghost:
    uint8 [pools], queue the expert being fetched was in; room: int64 [pools], slots."""

    q: Queues
    target: np.ndarray
    ghost: np.ndarray
    room: np.ndarray


class ARC(Eviction):
    """Evict from the list used once or the list used again, whichever is above its target."""

    name = "arc"
    source = "Megiddo and Modha 2003 (FAST), figure 4; real-valued target, as libCacheSim"
    reads = frozenset()

    def state(self, ctx):
        pools = len(ctx.capacity)
        ghost = np.full(pools, NOWHERE, np.uint8)
        return State(new_queues(ctx, 4), np.zeros(pools), ghost, ctx.capacity.astype(np.int64))

    @staticmethod
    def on_access(s, pool, e, i, hit):
        p = pool_of(pool, e)
        if hit:
            put(s.q, pool, T2, e)
        elif s.q.where[e] != NOWHERE:
            b1, b2 = float(s.q.size[B1, p]), float(s.q.size[B2, p])
            if s.q.where[e] == B1:
                s.target[p] = min(s.target[p] + max(b2 / b1, 1.0), float(s.room[p]))
            else:
                s.target[p] = max(s.target[p] - max(b1 / b2, 1.0), 0.0)
            s.ghost[p] = s.q.where[e]
            drop(s.q, pool, e)

    @staticmethod
    def on_insert(s, pool, e, i):
        p = pool_of(pool, e)
        put(s.q, pool, T1 if s.ghost[p] == NOWHERE else T2, e)
        s.ghost[p] = NOWHERE

    @staticmethod
    def on_evict(s, pool, e):
        p = pool_of(pool, e)
        if s.q.where[e] == T2:
            put(s.q, pool, B2, e)
        elif s.ghost[p] == NOWHERE and s.q.size[T1, p] + s.q.size[B1, p] >= s.room[p]:
            drop(s.q, pool, e)  # T1 fills the whole pool: no room for ghosts of it
        else:
            put(s.q, pool, B1, e)

    @staticmethod
    def victim(s, pool, p):
        t1, t2, b1, b2 = s.q.size[T1, p], s.q.size[T2, p], s.q.size[B1, p], s.q.size[B2, p]
        if s.ghost[p] == NOWHERE:
            if t1 + b1 >= s.room[p] and b1 > 0:
                drop(s.q, pool, head(s.q, pool, B1, p))
            elif t1 + b1 < s.room[p] and t1 + t2 + b1 + b2 >= 2 * s.room[p] and b2 > 0:
                drop(s.q, pool, head(s.q, pool, B2, p))
        above = t1 > s.target[p] or (t1 == s.target[p] and s.ghost[p] == B2)
        # A T1 that fills the pool gives up its oldest whatever the target.
        full = s.ghost[p] == NOWHERE and t1 >= s.room[p]
        k = T1 if t2 == 0 or (t1 > 0 and above) or full else T2
        e = first_free(s.q, pool, k, p)
        return e if e >= 0 else first_free(s.q, pool, T1 + T2 - k, p)
