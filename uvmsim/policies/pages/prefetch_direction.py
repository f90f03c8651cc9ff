"""Some pages, or all, on one side of the fault."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    MAX_FIRST,
    MAX_OUTER,
    PAGES,
    PagePolicy,
    choice,
    set_region,
    whole,
)

DIRECTIONS = ("forward", "backward", "around")
FORWARD, BACKWARD = 0, 1


class State(NamedTuple):
    p: np.ndarray  # int64 [2]: direction, pages


class PrefetchDirection(PagePolicy):
    """Pages after p, before p (up to p - 1), or in [p - n, p + n); `pages=0`: all on that side."""

    name: ClassVar[str] = "prefetch_direction"
    source: ClassVar[str] = (
        "eunomia-bpf/gpu_ext extension/backup/prefetch_direction.bpf.c; "
        "around: a decode mode of prefetch_llama_phase"
    )
    direction: str = "forward"
    pages: int = 0

    def state(self, ctx):
        p = [choice(self, "direction", DIRECTIONS), whole(self, "pages", 0, PAGES)]
        return State(np.array(p, np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        way, n = s.p[0], s.p[1]
        if n <= 0:
            n = region[MAX_OUTER] - region[MAX_FIRST]
        if way == FORWARD:
            set_region(region, page + 1, page + 1 + n)
        elif way == BACKWARD:
            set_region(region, page - n, page)
        else:
            set_region(region, page - n, page + n)
        return BYPASS
