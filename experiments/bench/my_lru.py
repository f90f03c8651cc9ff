"""A user's policy: LRU by timestamps kept in a list, written as docs/policies.md teaches."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, in_use


class State(NamedTuple):
    """newer, older: int32 [experts + 1], a ring with the sentinel at the end."""

    newer: np.ndarray
    older: np.ndarray


class MyLRU(Eviction):
    """Evict the least recently used of one pool."""

    name = "my-lru"

    def state(self, ctx):
        ring = np.arange(ctx.n_total + 1, dtype=np.int32)
        return State(ring, ring.copy())

    @staticmethod
    def on_access(s, pool, e, i, hit):
        end = s.newer.size - 1
        if hit:
            s.older[s.newer[e]] = s.older[e]
            s.newer[s.older[e]] = s.newer[e]
        last = s.older[end]
        s.newer[last] = e
        s.older[e] = last
        s.newer[e] = end
        s.older[end] = e

    @staticmethod
    def on_evict(s, pool, e):
        s.older[s.newer[e]] = s.older[e]
        s.newer[s.older[e]] = s.newer[e]

    @staticmethod
    def victim(s, pool, p):
        end = s.newer.size - 1
        e = s.newer[end]
        while e != end and in_use(pool, e):
            e = s.newer[e]
        return -1 if e == end else e
