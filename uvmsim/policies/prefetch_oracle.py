"""Prefetch with foresight: what a perfect predictor of limited reach would gain."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import EVENT, Prefetch


class State(NamedTuple):
    """ids: int32 [accesses]; lo: int64 [events + 1]; bytes_of: int64 [layers];
    limits: int64 [3], events of foresight, byte budget, most experts a call."""

    ids: np.ndarray
    lo: np.ndarray
    bytes_of: np.ndarray
    limits: np.ndarray


class Oracle(Prefetch):
    """The bound: the experts of the next `horizon` layers, up to `budget` bytes a layer."""

    name = "oracle"
    source = "perfect prediction with limited reach"
    needs = frozenset({"next_use"})
    horizon: int = 1
    """Layers (events) of foresight."""
    budget: str = "0"
    """Most bytes to fetch a layer, e.g. 64MiB; 0 = no limit."""

    def limit(self, ctx):
        return min(ctx.n_total, self.horizon * ctx.n_experts)

    def state(self, ctx):
        from uvmsim.core.units import parse_bytes

        limits = np.array([self.horizon, parse_bytes(self.budget), self.limit(ctx)], np.int64)
        return State(ctx.future_ids, ctx.event_lo, ctx.expert_bytes, limits)

    @staticmethod
    def prefetch(s, pool, ev, out):
        first = pool.clock[EVENT] + 1
        last = min(first + s.limits[0], s.lo.size - 1)
        spent, found = np.int64(0), 0
        for a in range(s.lo[first], s.lo[last]):
            e = s.ids[a]
            coming = pool.slot_of[e] >= 0
            for j in range(found):
                coming = coming or out[j] == e
            if coming:
                continue
            spent += s.bytes_of[pool.layer_of[e]]
            if found == s.limits[2] or (s.limits[1] > 0 and spent > s.limits[1]):
                break
            out[found] = e
            found += 1
        return found
