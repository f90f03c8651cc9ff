"""The neighbouring block, unless there are many faults."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    MAX_FIRST,
    MAX_OUTER,
    NOW_NS,
    drop_pending,
    migrate,
    set_region,
    whole,
)
from uvmsim.policies.pages.rate import faults_in_window
from uvmsim.policies.pages.t1 import HotFrames
from uvmsim.policies.pages.walk import same_way

A_DAY_US = 86_400_000_000


class State(NamedTuple):
    uses: np.ndarray  # int64 [cpus, slots]
    t1: np.ndarray  # int64 [1]
    walk: np.ndarray  # int64 [3]: see `same_way`
    window: np.ndarray  # int64 [3]: see `faults_in_window`
    most: np.ndarray  # int64 [1]: faults of a window that may ask


class PrefetchThrottledXb(HotFrames):
    """prefetch_always_max; the next block after two moves one way, if few faults came in that ms."""

    name: ClassVar[str] = "prefetch_throttled_xb"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_throttled_xb.bpf.c (2026)"
    migrates: ClassVar[bool] = True
    max_faults: int = 50
    window_us: int = 1000

    def state(self, ctx):
        window = np.array([0, 0, 1000 * whole(self, "window_us", 1, A_DAY_US)], np.int64)
        return State(
            *self.counts(), np.array([-1, 0, 0], np.int64), window,
            np.array([whole(self, "max_faults", 0, 1 << 32)], np.int64),
        )  # fmt: skip

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        faults = faults_in_window(s.window, d.n[NOW_NS])
        way = same_way(s.walk, block, 2, 0)
        if way != 0 and faults <= s.most[0]:
            drop_pending(d)
            migrate(d, block + way)
        return BYPASS
