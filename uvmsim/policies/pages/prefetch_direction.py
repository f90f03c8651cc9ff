"""Some pages, or all, on one side of the fault."""

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

DIRECTIONS = ("forward", "backward", "around")
FORWARD, BACKWARD = 0, 1


class State(NamedTuple):
    p: np.ndarray  # int64 [2]: direction, pages


class PrefetchDirection(PagePolicy):
    """Pages after the faulted one, before it, or around it; `pages=0`: up to the block's end."""

    name: ClassVar[str] = "prefetch_direction"
    source: ClassVar[str] = (
        "eunomia-bpf/gpu_ext extension/backup/prefetch_direction.bpf.c; "
        "around: a decode mode of prefetch_llama_phase"
    )
    direction: str = "forward"
    pages: int = 0

    def state(self, ctx):
        return State(np.array([choice(self, "direction", DIRECTIONS), self.pages], np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        way, n = s.p[0], s.p[1]
        if n <= 0:
            n = region[MAX_OUTER] - region[MAX_FIRST]
        first, outer = page, page
        if way != FORWARD:
            first = page - n
        if way != BACKWARD:
            first = page + 1 if way == FORWARD else first
            outer = page + 1 + n
        set_region(region, first, outer)
        return BYPASS
