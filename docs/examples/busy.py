"""Evict the expert that carried the fewest tokens lately."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, in_use


class State(NamedTuple):
    load: np.ndarray  # float64 [experts]: tokens an expert served, fading with every event
    fade: np.ndarray  # float64 [1]


class Busy(Eviction):
    """Evict the least busy expert: tokens served, halved every `half_life` turns of its layer."""

    name = "busy"
    half_life: float = 16.0

    def state(self, ctx):
        return State(np.zeros(ctx.n_total), np.array([0.5 ** (1 / self.half_life)]))

    @staticmethod
    def on_event(s, pool, ev):
        first = ev.layer * pool.n_experts
        for e in range(first, first + pool.n_experts):
            s.load[e] *= s.fade[0]
        for j in range(len(ev.experts)):
            s.load[ev.experts[j]] += ev.counts[j]

    @staticmethod
    def victim(s, pool, p):
        best = -1
        for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
            e = pool.expert_in[slot]
            if not in_use(pool, e) and (best < 0 or s.load[e] < s.load[best]):
                best = e
        return best
