"""A policy of a user's own that asks for every action: LRU whose answer follows from the expert
alone."""

from uvmsim.policies.base import CPU, CPU_BEHIND, INSERT, OFFER, SCRATCH
from uvmsim.policies.lru import LRU


class Asking(LRU):
    """LRU; what becomes of a miss goes round by expert and layer."""

    name = "asking"

    @staticmethod
    def on_miss(s, pool, e, i):
        k = (e % pool.n_experts + 2 * pool.layer_of[e]) % 5
        if k == 0:
            return OFFER
        if k == 1:
            return INSERT
        if k == 2:
            return SCRATCH
        return CPU if k == 3 else CPU_BEHIND


class OnCpu(LRU):
    """LRU; every other expert is computed on the CPU, no scratch place is asked for."""

    name = "on-cpu"

    @staticmethod
    def on_miss(s, pool, e, i):
        return CPU if e % 2 else CPU_BEHIND


class Wrong(LRU):
    """An answer that is none."""

    name = "wrong"

    @staticmethod
    def on_miss(s, pool, e, i):
        return 7
