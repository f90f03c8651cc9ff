"""SIEVE: a FIFO with a hand that moves from old to new and spares what was used."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, in_use, pool_of
from uvmsim.policies.lists import Lists, end_of, new_lists, push_tail, unlink


class State(NamedTuple):
    """links: one FIFO a pool; used: uint8 [n_total], used since it was loaded or last spared;
    hand: uint32 [pools], where the next search starts, a sentinel for the oldest."""

    links: Lists
    used: np.ndarray
    hand: np.ndarray


class Sieve(Eviction):
    """Evict the next unused expert from the hand on; spared ones stay where they are."""

    name = "sieve"
    source = "Zhang, Yang, Yue, Vigfusson and Rashmi 2024 (NSDI)"
    reads = frozenset()

    def state(self, ctx):
        hand = ctx.n_total + np.arange(len(ctx.capacity), dtype=np.uint32)
        return State(new_lists(ctx), np.zeros(ctx.n_total, np.uint8), hand.astype(np.uint32))

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            s.used[e] = 1

    @staticmethod
    def on_insert(s, pool, e, i):
        s.used[e] = 0
        push_tail(s.links, end_of(pool, 0, pool_of(pool, e)), e)

    @staticmethod
    def on_evict(s, pool, e):
        p = pool_of(pool, e)
        if s.hand[p] == e:
            s.hand[p] = s.links.next[e]
        unlink(s.links, e)

    @staticmethod
    def victim(s, pool, p):
        end = end_of(pool, 0, p)
        e = s.hand[p]
        wraps = 0
        while wraps < 3:
            if e == end:
                wraps += 1
            elif not in_use(pool, e):
                if s.used[e] == 0:
                    s.hand[p] = e
                    return np.int64(e)
                s.used[e] = 0
            e = s.links.next[e]
        return np.int64(-1)
