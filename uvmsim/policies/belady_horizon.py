"""Belady's MIN with foresight of a few forward passes."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import ACCESS, NEVER, Eviction, in_use


class State(NamedTuple):
    """upcoming: int64 [accesses], next use of the expert accessed; nxt: int64 [n_total], next use of
    each expert; step_of: int32 [accesses]; stamp: int64 [n_total], last use; horizon: int64 [1]."""

    upcoming: np.ndarray
    nxt: np.ndarray
    step_of: np.ndarray
    stamp: np.ndarray
    horizon: np.ndarray


class BeladyHorizon(Eviction):
    """Belady that sees `horizon` forward passes ahead; LRU among what lies beyond."""

    name = "belady-horizon"
    source = "horizon-K Belady, as in expert-stream's analysis"
    needs = frozenset({"next_use"})
    horizon: int = 4
    """Forward passes of foresight."""

    def state(self, ctx):
        return State(
            ctx.next_use, ctx.first_use.copy(), ctx.step_of, np.full(ctx.n_total, -1, np.int64),
            np.array([self.horizon]),
        )  # fmt: skip

    @staticmethod
    def on_access(s, pool, e, i, hit):
        s.nxt[e] = s.upcoming[i]
        s.stamp[e] = i

    @staticmethod
    def victim(s, pool, p):
        far, seen = -1, -1
        last = s.step_of[pool.clock[ACCESS]] + s.horizon[0]
        for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
            e = pool.expert_in[slot]
            if in_use(pool, e):
                continue
            if s.nxt[e] == NEVER or s.step_of[s.nxt[e]] > last:
                if far < 0 or s.stamp[e] < s.stamp[far]:
                    far = e
            elif seen < 0 or s.nxt[e] > s.nxt[seen]:
                seen = e
        return far if far >= 0 else seen
