"""The neighbouring block too."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    DEFAULT,
    MAX_FIRST,
    MAX_OUTER,
    choice,
    drop_pending,
    migrate,
    move_tail,
    set_region,
)
from uvmsim.policies.pages.t1 import HotFrames, counted
from uvmsim.policies.pages.walk import LAST, same_way

MODES = ("2-step", "blind", "3-step", "adjacent")
TWO_STEP, BLIND, THREE_STEP, ADJACENT = 0, 1, 2, 3
EVICT = ("passive_mru", "cycle_moe", "lru", "fifo")
PASSIVE_MRU, CYCLE_MOE, LRU, FIFO = 0, 1, 2, 3


class State(NamedTuple):
    uses: np.ndarray  # int64 [cpus, slots]
    t1: np.ndarray  # int64 [1]
    walk: np.ndarray  # int64 [3]: see `same_way`
    how: np.ndarray  # int64 [2]: mode, order


class PrefetchCrossBlockV2(HotFrames):
    """prefetch_always_max, and the next block where faults keep moving one way."""

    name: ClassVar[str] = "prefetch_cross_block_v2"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_cross_block_v2.bpf.c (2026)"
    migrates: ClassVar[bool] = True
    mode: str = "2-step"
    evict: str = "passive_mru"

    def state(self, ctx):
        how = np.array([choice(self, "mode", MODES), choice(self, "evict", EVICT)], np.int64)
        return State(*self.counts(), np.array([-1, 0, 0], np.int64), how)

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        moved = block != s.walk[LAST]
        need = 2 if s.how[0] == TWO_STEP else 3
        way = same_way(s.walk, block, need, 1 if s.how[0] == ADJACENT else 0)
        if s.how[0] == BLIND:
            way = 1 if moved else 0
        if way != 0:
            drop_pending(d)
            migrate(d, block + way)
        return BYPASS

    @staticmethod
    def block_activate(s, d, chunk):
        counts = s.how[1] == PASSIVE_MRU or s.how[1] == CYCLE_MOE
        if counts and counted(s.uses, d, chunk) >= s.t1[0]:
            move_tail(d, chunk)
        return DEFAULT

    @staticmethod
    def block_access(s, d, chunk):
        return BYPASS if s.how[1] == FIFO else DEFAULT
