"""CLOCK (second chance), written as FIFO with reinsertion."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, in_use
from uvmsim.policies.lists import Lists, new_lists, push_tail, unlink


class State(NamedTuple):
    """links: one FIFO a pool; used: uint8 [n_total], the reference bit."""

    links: Lists
    used: np.ndarray


class Clock(Eviction):
    """FIFO where a used expert gets a second round; a new one enters with its bit clear."""

    name = "clock"
    source = "Corbato 1968; one bit, as libCacheSim's Clock"

    def state(self, ctx):
        return State(new_lists(ctx), np.zeros(ctx.n_total, np.uint8))

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            s.used[e] = 1

    @staticmethod
    def on_insert(s, pool, e, i):
        s.used[e] = 0
        push_tail(s.links, pool.layer_of.size + pool.pool_of[e], e)

    @staticmethod
    def on_evict(s, pool, e):
        unlink(s.links, e)

    @staticmethod
    def victim(s, pool, p):
        end = pool.layer_of.size + p
        e = s.links.next[end]
        while e != end:
            after = s.links.next[e]
            if not in_use(pool, e):
                if s.used[e] == 0:
                    return e
                s.used[e] = 0
                unlink(s.links, e)
                push_tail(s.links, end, e)
                if after == end:
                    after = e
            e = after
        return -1
