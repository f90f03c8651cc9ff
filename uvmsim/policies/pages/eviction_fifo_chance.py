"""FIFO with chances."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import BYPASS, PagePolicy, move_tail

INSPECTED = 8


class State(NamedTuple):
    chance: np.ndarray  # int64 [chunks]: rounds left
    given: np.ndarray  # int64 [3]: of the high, the low and any other process


class EvictionFifoChance(PagePolicy):
    """FIFO; at the head a chunk is sent back while it has chances, as many as its process gets."""

    name: ClassVar[str] = "eviction_fifo_chance"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/eviction_fifo_chance.bpf.c"
    high: int = 3
    low: int = 0
    other: int = 1

    def state(self, ctx):
        given = np.array([self.high, self.low, self.other], np.int64)
        return State(np.zeros(ctx.n_chunks, np.int64), given)

    @staticmethod
    def block_activate(s, d, chunk):
        s.chance[chunk] = s.given[min(d.tenant_of[d.block_of[chunk]], 2)]
        return BYPASS

    @staticmethod
    def block_access(s, d, chunk):
        s.chance[chunk] = s.given[min(d.tenant_of[d.block_of[chunk]], 2)]
        return BYPASS

    @staticmethod
    def evict_prepare(s, d):
        end = len(d.next) - 1
        for _ in range(INSPECTED):
            chunk = d.next[end]
            if chunk == end or s.chance[chunk] <= 0:
                break
            s.chance[chunk] -= 1
            move_tail(d, chunk)
        return 0
