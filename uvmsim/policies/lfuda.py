"""LFU with dynamic ageing: old popularity fades, so a change of topic is followed."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, in_use, pool_of


class State(NamedTuple):
    """key: float64 [n_total], the rank; since: int64 [n_total], when the rank was reached; uses:
    int64 [n_total]; age: float64 [pools], rank of the last victim; tick: int64 [1]."""

    key: np.ndarray
    since: np.ndarray
    uses: np.ndarray
    age: np.ndarray
    tick: np.ndarray


class LFUDA(Eviction):
    """LFU with dynamic ageing: rank = uses + rank of the last victim (a scan finds the least)."""

    name = "lfuda"
    source = "Arlitt, Cherkasova, Dilley, Friedrich and Jin 2000 (LFU-DA, as in Squid)"
    reads = frozenset({"slots"})

    def state(self, ctx):
        n = ctx.n_total
        return State(
            np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.int64),
            np.zeros(len(ctx.capacity)), np.zeros(1, np.int64),
        )  # fmt: skip

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            s.tick[0] += 1
            s.since[e] = s.tick[0]
            s.uses[e] += 1
            s.key[e] = s.uses[e] + s.age[pool_of(pool, e)]

    @staticmethod
    def on_insert(s, pool, e, i):
        s.tick[0] += 1
        s.since[e] = s.tick[0]
        s.uses[e] = 1
        s.key[e] = 1 + s.age[pool_of(pool, e)]

    @staticmethod
    def on_evict(s, pool, e):
        s.age[pool_of(pool, e)] = s.key[e]

    @staticmethod
    def victim(s, pool, p):
        best = -1
        for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
            e = pool.expert_in[slot]
            if not in_use(pool, e) and (
                best < 0
                or s.key[e] < s.key[best]
                or (s.key[e] == s.key[best] and s.since[e] < s.since[best])
            ):
                best = e
        return best
