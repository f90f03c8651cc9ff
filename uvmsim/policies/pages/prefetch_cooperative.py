"""The neighbouring block, kept once it has come."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    MAX_FIRST,
    MAX_OUTER,
    PagePolicy,
    migrate,
    move_tail,
    set_region,
)

INSPECTED = 8
LAST, WAY, RUN, AT = 0, 1, 2, 3


class State(NamedTuple):
    ring: np.ndarray  # int64 [ring]: blocks asked for last, -1: none
    h: np.ndarray  # int64 [4]: last block, direction, moves that way, place in the ring


class PrefetchCooperative(PagePolicy):
    """prefetch_always_max and the next block in a run; what was asked for last is not evicted."""

    name: ClassVar[str] = "prefetch_cooperative"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_cooperative.bpf.c (2026)"
    migrates: ClassVar[bool] = True
    ring: int = 64  # our choice

    def state(self, ctx):
        ring = np.full(max(self.ring, 1), -1, np.int64)
        return State(ring, np.array([-1, 0, 0, 0], np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        if block == s.h[LAST]:
            return BYPASS
        way = 0 if s.h[LAST] < 0 else (1 if block > s.h[LAST] else -1)
        s.h[RUN] = s.h[RUN] + 1 if way == s.h[WAY] else 1
        s.h[WAY], s.h[LAST] = way, block
        if way != 0 and s.h[RUN] >= 2:
            migrate(d, block + way)
            s.ring[s.h[AT]] = block + way
            s.h[AT] = (s.h[AT] + 1) % len(s.ring)
        return BYPASS

    @staticmethod
    def evict_prepare(s, d):
        end = len(d.next) - 1
        for _ in range(INSPECTED):
            chunk = d.next[end]
            protected = False
            if chunk != end:
                for i in range(len(s.ring)):
                    if s.ring[i] == d.block_of[chunk]:
                        protected = True
            if not protected:
                break
            move_tail(d, chunk)
        return 0
