"""Prefetch width and stay in memory, both by process."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import BYPASS, move_tail
from uvmsim.policies.pages.prefetch_pid_tree import PrefetchPidTree


class State(NamedTuple):
    threshold: np.ndarray  # int64 [3]: per cent, of the high, the low and any other process
    uses: np.ndarray  # int64 [chunks]: accesses to a frame


class PrefetchEvictionPid(PrefetchPidTree):
    """prefetch_pid_tree; a chunk moves to the tail on every (threshold / 10)-th access."""

    name: ClassVar[str] = "prefetch_eviction_pid"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_eviction_pid.bpf.c"
    high: int = 10
    low: int = 80
    other: int = 50

    def state(self, ctx):
        threshold = np.array([self.high, self.low, self.other], np.int64)
        return State(threshold, np.zeros(ctx.n_chunks, np.int64))

    @staticmethod
    def block_access(s, d, chunk):
        s.uses[chunk] += 1
        decay = max(s.threshold[min(d.tenant_of[d.block_of[chunk]], 2)] // 10, 1)
        if s.uses[chunk] % decay == 0:
            move_tail(d, chunk)
        return BYPASS
