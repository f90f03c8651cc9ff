"""Shares of memory, by process."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import BYPASS, DEFAULT, PagePolicy, move_tail


class State(NamedTuple):
    owner: np.ndarray  # int64 [chunks]: 0 high, 1 low, 2 other, -1 never used
    active: np.ndarray  # int64 [3]: chunks a process has
    percent: np.ndarray  # int64 [3]


class EvictionPidQuota(PagePolicy):
    """Accesses refresh a chunk only while its process is within its share; 0 %: no limit."""

    name: ClassVar[str] = "eviction_pid_quota"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/eviction_pid_quota.bpf.c"
    high: int = 0
    low: int = 100
    other: int = 0

    def state(self, ctx):
        percent = np.array([self.high, self.low, self.other], np.int64)
        return State(np.full(ctx.n_chunks, -1, np.int64), np.zeros(3, np.int64), percent)

    @staticmethod
    def block_activate(s, d, chunk):
        # No hook tells who was evicted: a frame leaves its owner when it is allocated again.
        if s.owner[chunk] >= 0:
            s.active[s.owner[chunk]] -= 1
        s.owner[chunk] = min(d.tenant_of[d.block_of[chunk]], 2)
        s.active[s.owner[chunk]] += 1
        return DEFAULT

    @staticmethod
    def block_access(s, d, chunk):
        who = min(d.tenant_of[d.block_of[chunk]], 2)
        if s.percent[who] == 0:
            return DEFAULT
        if s.active[who] <= (s.active[0] + s.active[1]) * s.percent[who] // 100:
            move_tail(d, chunk)
        return BYPASS
