"""The neighbouring block; what was asked for last, and what lies beside it, is protected."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    DEFAULT,
    MAX_FIRST,
    MAX_OUTER,
    drop_pending,
    migrate,
    move_tail,
    set_region,
    whole,
)
from uvmsim.policies.pages.t1 import CountsFrames, counted
from uvmsim.policies.pages.walk import same_way

AT, RADIUS = 0, 1


class State(NamedTuple):
    uses: np.ndarray  # int64 [cpus, slots]
    t1: np.ndarray  # int64 [1]
    walk: np.ndarray  # int64 [3]: see `same_way`
    ring: np.ndarray  # int64 [ring]: blocks asked for last, -1: none
    p: np.ndarray  # int64 [2]: place in the ring, radius


class PrefetchCooperative(CountsFrames):
    """prefetch_always_max and the next block in a run; chunks near what it asked for go to the tail."""

    name: ClassVar[str] = "prefetch_cooperative"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_cooperative.bpf.c (2026)"
    migrates: ClassVar[bool] = True
    ring: int = 8
    radius: int = 2  # blocks (protect_radius)

    def state(self, ctx):
        ring = np.full(whole(self, "ring", 1, 4096), -1, np.int64)
        p = np.array([0, whole(self, "radius", 0, 1 << 32)], np.int64)
        return State(*self.counts(), np.array([-1, 0, 0], np.int64), ring, p)

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        way = same_way(s.walk, block, 2, 0)
        if way != 0:
            drop_pending(d)
            migrate(d, block + way)
            s.ring[s.p[AT]] = block + way
            s.p[AT] = (s.p[AT] + 1) % len(s.ring)
        return BYPASS

    @staticmethod
    def block_access(s, d, chunk):
        block, near = d.block_of[chunk], False
        for i in range(len(s.ring)):
            if s.ring[i] >= 0 and abs(block - s.ring[i]) <= s.p[RADIUS]:
                near = True
        if near or counted(s.uses, d, chunk) >= s.t1[0]:
            move_tail(d, chunk)
            return BYPASS
        return DEFAULT
