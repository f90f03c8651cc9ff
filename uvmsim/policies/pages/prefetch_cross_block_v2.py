"""The neighbouring block too."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    DEFAULT,
    MAX_FIRST,
    MAX_OUTER,
    NOW_NS,
    PagePolicy,
    choice,
    migrate,
    move_tail,
    set_region,
)
from uvmsim.policies.pages.cycle_moe import SLOTS

MODES = ("2-step", "blind", "3-step", "adjacent")
TWO_STEP, BLIND, THREE_STEP, ADJACENT = 0, 1, 2, 3
EVICT = ("passive_mru", "cycle_moe", "lru", "fifo")
PASSIVE_MRU, CYCLE_MOE, LRU, FIFO = 0, 1, 2, 3
MODE, ORDER, LAST, WAY, RUN, GAP_NS, ASKED_NS = 0, 1, 2, 3, 4, 5, 6
T1 = 3


class State(NamedTuple):
    uses: np.ndarray  # int64 [slots]: of T1
    h: np.ndarray  # int64 [7]: mode, order, last block, direction, moves that way, gap, last time


class PrefetchCrossBlockV2(PagePolicy):
    """prefetch_always_max, and the next block where faults keep moving one way."""

    name: ClassVar[str] = "prefetch_cross_block_v2"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_cross_block_v2.bpf.c (2026)"
    migrates: ClassVar[bool] = True
    mode: str = "2-step"
    evict: str = "passive_mru"

    def state(self, ctx):
        h = np.array([choice(self, "mode", MODES), choice(self, "evict", EVICT), -1, 0, 0, 0, 0])
        return State(np.zeros(SLOTS, np.int64), h.astype(np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        step = block - s.h[LAST]
        if step == 0:
            return BYPASS
        way = 1 if step > 0 else -1
        if s.h[LAST] < 0 or (s.h[MODE] == ADJACENT and abs(step) != 1):
            way = 0
        s.h[RUN] = s.h[RUN] + 1 if way == s.h[WAY] else 1
        s.h[WAY], s.h[LAST] = way, block
        sure = way != 0 and s.h[RUN] >= (2 if s.h[MODE] == TWO_STEP else 3)
        if s.h[MODE] == BLIND:
            way, sure = 1, True
        if sure and d.n[NOW_NS] - s.h[ASKED_NS] >= s.h[GAP_NS]:
            s.h[ASKED_NS] = d.n[NOW_NS]
            migrate(d, block + way)
        return BYPASS

    @staticmethod
    def block_activate(s, d, chunk):
        if s.h[ORDER] == CYCLE_MOE:
            s.uses[chunk % SLOTS] += 1
            if s.uses[chunk % SLOTS] >= T1:
                move_tail(d, chunk)
        return DEFAULT

    @staticmethod
    def block_access(s, d, chunk):
        if s.h[ORDER] == LRU or s.h[ORDER] == CYCLE_MOE:
            return DEFAULT
        if s.h[ORDER] == PASSIVE_MRU:
            s.uses[chunk % SLOTS] += 1
            if s.uses[chunk % SLOTS] >= T1:
                move_tail(d, chunk)
        return BYPASS
