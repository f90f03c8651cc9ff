"""A share of the block, next to the fault."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    MAX_FIRST,
    MAX_OUTER,
    PagePolicy,
    choice,
    set_region,
)

DIRECTIONS = ("forward", "backward", "forward_start")
FORWARD, BACKWARD = 0, 1
N_PAGES, PERCENT, DIRECTION = 0, 1, 2


class State(NamedTuple):
    p: np.ndarray  # int64 [3]: pages, percent, direction


class PrefetchAdaptiveSequential(PagePolicy):
    """A share of the block (or a number of pages) after, or before, the faulted page."""

    name: ClassVar[str] = "prefetch_adaptive_sequential"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_adaptive_sequential.bpf.c"
    percent: int = 100  # what its loader writes where NVML gives no PCIe rate (-p)
    pages: int = 0  # above 0: that many pages instead (-n)
    direction: str = "forward"

    def state(self, ctx):
        where = choice(self, "direction", DIRECTIONS)
        return State(np.array([self.pages, self.percent, where], np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        total = region[MAX_OUTER] - region[MAX_FIRST]
        n = s.p[N_PAGES]
        if n <= 0 and s.p[PERCENT] > 0:
            n = min(max(total * s.p[PERCENT] // 100, 1), total)
        if n > 0:
            if s.p[DIRECTION] == FORWARD:
                set_region(region, page + 1, page + 1 + n)
            elif s.p[DIRECTION] == BACKWARD:
                set_region(region, page - n, page)
            else:
                set_region(region, region[MAX_FIRST], region[MAX_FIRST] + n)
        return BYPASS
