"""Refreshed more or less often, by process."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import BYPASS, PagePolicy, move_tail, whole

LARGE = 1 << 32


class State(NamedTuple):
    uses: np.ndarray  # int64 [chunks]: accesses to a frame
    decay: np.ndarray  # int64 [3]: of the high, the low and any other process


class EvictionFreqPidDecay(PagePolicy):
    """Every n-th access moves a chunk to the tail, n by process; about to leave, it starts anew."""

    name: ClassVar[str] = "eviction_freq_pid_decay"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/eviction_freq_pid_decay.bpf.c"
    high: int = 1
    low: int = 10
    other: int = 5

    def state(self, ctx):
        decay = [whole(self, key, 0, LARGE) for key in ("high", "low", "other")]
        return State(np.zeros(ctx.n_chunks, np.int64), np.maximum(np.array(decay, np.int64), 1))

    @staticmethod
    def block_access(s, d, chunk):
        s.uses[chunk] += 1
        if s.uses[chunk] % s.decay[min(d.tenant_of[d.block_of[chunk]], 2)] == 0:
            move_tail(d, chunk)
        return BYPASS

    @staticmethod
    def evict_prepare(s, d):
        head = d.next[len(d.next) - 1]
        if head < len(s.uses):
            s.uses[head] = 0
        return 0
