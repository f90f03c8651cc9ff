"""Random eviction: the floor any idea must beat."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, in_use


class State(NamedTuple):
    """x: uint64 [1], state of the generator."""

    x: np.ndarray


class Random(Eviction):
    """Evict a random expert (seeded, reproducible)."""

    name = "random"
    source = "generator: xorshift64*, Vigna 2016"
    reads = frozenset({"slots"})

    def state(self, ctx):
        seed = np.random.SeedSequence(ctx.seed).generate_state(1, np.uint64)
        return State(seed | np.uint64(1))

    @staticmethod
    def victim(s, pool, p):
        lo, n = pool.lo[p], pool.used[p]
        free = 0
        for slot in range(lo, lo + n):
            if not in_use(pool, pool.expert_in[slot]):
                free += 1
        if free == 0:
            return -1
        x = s.x[0]
        x ^= x >> np.uint64(12)
        x ^= x << np.uint64(25)
        x ^= x >> np.uint64(27)
        s.x[0] = x
        skip = ((x * np.uint64(2685821657736338717)) >> np.uint64(33)) % np.uint64(free)
        for slot in range(lo, lo + n):
            e = pool.expert_in[slot]
            if not in_use(pool, e):
                if skip == np.uint64(0):
                    return e
                skip -= np.uint64(1)
        return -1
