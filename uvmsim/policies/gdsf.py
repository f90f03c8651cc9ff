"""GreedyDual-Size with frequency: who is cheap to bring back for its size, and little used, leaves."""

from typing import Any, ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.base import pool_of
from uvmsim.policies.lfuda import LFUDA


class State(NamedTuple):
    """key: float64 [n_total], the rank; since: int64 [n_total], when the rank was reached; uses:
    int64 [n_total]; worth: float64 [n_layers], cost over size; age: float64 [pools], rank of the last
    victim; tick: int64 [1]; counts: bool [1]."""

    key: np.ndarray
    since: np.ndarray
    uses: np.ndarray
    worth: np.ndarray
    age: np.ndarray
    tick: np.ndarray
    counts: np.ndarray


class GDSF(LFUDA):
    """Rank = age + uses x cost / size, least leaves; cost is the time to bring an expert back."""

    name = "gdsf"
    source = "Cherkasova 1998 (GDSF); Cao and Irani 1997 (GreedyDual-Size: frequency=0)"
    reads = frozenset({"slots"})
    priced = True
    frequency: int = 1
    search: ClassVar[dict[str, Any]] = {"frequency": [0, 1]}

    def state(self, ctx):
        n, size = ctx.n_total, ctx.expert_bytes.astype(np.float64)
        cost = np.ones(len(size)) if ctx.cost_ns is None else ctx.cost_ns.astype(np.float64)
        worth = cost / size
        return State(
            np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.int64), worth / worth.max(),
            np.zeros(len(ctx.capacity)), np.zeros(1, np.int64), np.array([bool(self.frequency)]),
        )  # fmt: skip

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            s.tick[0] += 1
            s.since[e] = s.tick[0]
            if s.counts[0]:
                s.uses[e] += 1
            s.key[e] = s.age[pool_of(pool, e)] + s.uses[e] * s.worth[pool.layer_of[e]]

    @staticmethod
    def on_insert(s, pool, e, i):
        s.tick[0] += 1
        s.since[e] = s.tick[0]
        s.uses[e] = 1
        s.key[e] = s.age[pool_of(pool, e)] + s.worth[pool.layer_of[e]]
