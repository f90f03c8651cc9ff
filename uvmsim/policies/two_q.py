"""2Q: a FIFO for newcomers, an LRU list for those that came back after it."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, pool_of
from uvmsim.policies.queues import Queues, drop, first_free, head, new_queues, put

A1IN, A1OUT, AM = range(3)


class State(NamedTuple):
    """q: the queues, A1OUT of ghosts; room: int64 [2, pools] of the first two; back: uint8 [pools],
    the expert being fetched was a ghost."""

    q: Queues
    room: np.ndarray
    back: np.ndarray


class TwoQ(Eviction):
    """Newcomers pass a FIFO; who is asked for again soon after leaving it joins an LRU list."""

    name = "2q"
    source = "Johnson and Shasha 1994 (VLDB), full version; Kin = c/4, Kout = c/2"
    reads = frozenset()

    def state(self, ctx):
        room = np.stack([ctx.capacity // 4, ctx.capacity // 2])
        return State(new_queues(ctx, 3), room, np.zeros(len(ctx.capacity), np.uint8))

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if s.q.where[e] == AM:
            put(s.q, pool, AM, e)
        elif s.q.where[e] == A1OUT:
            s.back[pool_of(pool, e)] = 1
            drop(s.q, pool, e)

    @staticmethod
    def on_insert(s, pool, e, i):
        p = pool_of(pool, e)
        put(s.q, pool, AM if s.back[p] == 1 else A1IN, e)
        s.back[p] = 0

    @staticmethod
    def on_evict(s, pool, e):
        p = pool_of(pool, e)
        if s.q.where[e] == AM:
            drop(s.q, pool, e)
            return
        put(s.q, pool, A1OUT, e)
        if s.q.size[A1OUT, p] > s.room[A1OUT, p]:
            drop(s.q, pool, head(s.q, pool, A1OUT, p))

    @staticmethod
    def victim(s, pool, p):
        k = AM if s.q.size[AM, p] > 0 and s.q.size[A1IN, p] <= s.room[A1IN, p] else A1IN
        e = first_free(s.q, pool, k, p)
        return e if e >= 0 else first_free(s.q, pool, A1IN + AM - k, p)
