"""Frames activated three times are called hot (T1)."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    DEFAULT,
    MAX_FIRST,
    MAX_OUTER,
    PagePolicy,
    move_tail,
    set_region,
)

SLOTS = 16384
"""Of the PERCPU_ARRAY. gpu_ext's index is a hash of the chunk's kernel address, which collides; ours
is the chunk's number, which does not below 16,384 chunks. Here there is one CPU."""


class Counts(NamedTuple):
    uses: np.ndarray  # int64 [slots]
    t1: np.ndarray  # int64 [1]


class EvictionCycleMoe(PagePolicy):
    """A frame allocated for the third time asks for the tail, where it already is."""

    name: ClassVar[str] = "eviction_cycle_moe"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/eviction_cycle_moe.bpf.c (2026)"
    t1: int = 3

    def state(self, ctx):
        return Counts(np.zeros(SLOTS, np.int64), np.array([self.t1], np.int64))

    @staticmethod
    def block_activate(s, d, chunk):
        s.uses[chunk % SLOTS] += 1
        if s.uses[chunk % SLOTS] >= s.t1[0]:
            move_tail(d, chunk)
        return DEFAULT


class PrefetchAlwaysMaxCycleMoe(EvictionCycleMoe):
    """prefetch_always_max with eviction_cycle_moe."""

    name: ClassVar[str] = "prefetch_always_max_cycle_moe"
    source: ClassVar[str] = (
        "eunomia-bpf/gpu_ext extension/prefetch_always_max_cycle_moe.bpf.c (2026)"
    )

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        return BYPASS
