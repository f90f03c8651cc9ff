"""Static placement: experts chosen beforehand are the GPU's for ever, all others the CPU's."""

from typing import ClassVar, NamedTuple

import numpy as np

from traces.errors import InputError
from uvmsim.policies.base import CPU, INSERT, Eviction, in_use

PLACES = ("frequency", "uniform", "random", "front")


class State(NamedTuple):
    """keep: uint8 [n_total], 1 = has a slot from its first use on."""

    keep: np.ndarray


class StaticPlacement(Eviction):
    """Chosen experts compute on the GPU, the rest on the CPU; nothing ever moves."""

    name = "static-placement"
    source = "KTransformers, kt-kernel's expert placement strategies"
    needs = frozenset({"profile"})
    reads = frozenset({"slots"})
    place: str = "frequency"
    """Who gets the slots: the hottest of the profile (frequency), as many in each layer, lowest numbers
    first (uniform), whoever the seed picks (random), whole layers from the first (front)."""
    search: ClassVar[dict[str, list[str]]] = {"place": list(PLACES)}

    def state(self, ctx):
        if self.place not in PLACES:
            raise InputError(
                f"policy static-placement: place={self.place!r} is none of {', '.join(PLACES)}"
            )
        keep = np.zeros(ctx.n_total, np.uint8)
        rng = np.random.default_rng(ctx.seed)
        for p, capacity in enumerate(ctx.capacity):
            mine = np.flatnonzero(ctx.pool_of == p)
            if self.place == "frequency":
                mine = mine[np.argsort(-ctx.profile_counts[mine], kind="stable")]
            elif self.place == "uniform":
                mine = mine[np.argsort(mine % ctx.n_experts, kind="stable")]
            elif self.place == "random":
                mine = rng.permutation(mine)
            keep[mine[: int(capacity) - ctx.spare]] = 1
        return State(keep)

    @staticmethod
    def on_miss(s, pool, e, i):
        return INSERT if s.keep[e] == 1 else CPU

    @staticmethod
    def victim(s, pool, p):
        # Only a prefetcher can fill the pool beyond what was chosen: what it brought goes.
        forced = -1
        for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
            e = pool.expert_in[slot]
            if not in_use(pool, e):
                if s.keep[e] == 0:
                    return e
                if forced < 0:
                    forced = e
        return forced
