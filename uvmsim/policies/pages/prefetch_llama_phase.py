"""One width for prompts, another for tokens one by one."""

from typing import ClassVar, NamedTuple

import numpy as np

from traces.files.schema import PREFILL
from uvmsim.policies.pages.base import (
    BYPASS,
    DEFAULT,
    MAX_FIRST,
    MAX_OUTER,
    PAGES,
    PHASE,
    PagePolicy,
    choice,
    set_region,
    whole,
)

MODES = ("max", "around", "default", "forward")
MAX, AROUND, NATIVE, FORWARD = 0, 1, 2, 3


class State(NamedTuple):
    p: np.ndarray  # int64 [2]: decode mode, radius


class PrefetchLlamaPhase(PagePolicy):
    """prefetch_always_max in prefill; in decode that, [p - r, p + r), the tree, or the block's rest."""

    name: ClassVar[str] = "prefetch_llama_phase"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_llama_phase.bpf.c (2026)"
    decode: str = "around"  # which mode is its loader's default is not published
    radius: int = 32  # pages

    def state(self, ctx):
        p = [choice(self, "decode", MODES), whole(self, "radius", 0, PAGES)]
        return State(np.array(p, np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        mode = MAX if d.n[PHASE] == PREFILL else s.p[0]
        if mode == NATIVE:
            return DEFAULT
        if mode == AROUND:
            set_region(region, page - s.p[1], page + s.p[1])
        elif mode == FORWARD:
            set_region(region, page + 1, region[MAX_OUTER])
        else:
            set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        return BYPASS
