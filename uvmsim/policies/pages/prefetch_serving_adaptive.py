"""Whole blocks while there are many faults."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    DEFAULT,
    MAX_FIRST,
    MAX_OUTER,
    NOW_NS,
    PagePolicy,
    set_region,
    whole,
)
from uvmsim.policies.pages.rate import faults_in_window

A_DAY_MS = 86_400_000


class State(NamedTuple):
    window: np.ndarray  # int64 [3]: see `faults_in_window`
    many: np.ndarray  # int64 [1]: more faults than that


class PrefetchServingAdaptive(PagePolicy):
    """prefetch_always_max from the 51st fault of a window of 10 ms on, the driver's tree before."""

    name: ClassVar[str] = "prefetch_serving_adaptive"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_serving_adaptive.bpf.c (2026)"
    max_faults: int = 50
    window_ms: int = 10

    def state(self, ctx):
        window = np.array([0, 0, 1_000_000 * whole(self, "window_ms", 1, A_DAY_MS)], np.int64)
        return State(window, np.array([whole(self, "max_faults", 0, 1 << 32)], np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        if faults_in_window(s.window, d.n[NOW_NS]) <= s.many[0]:
            return DEFAULT
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        return BYPASS
