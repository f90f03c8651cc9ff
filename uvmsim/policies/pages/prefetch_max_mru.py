"""Whole blocks; frames served three times (T1) are kept, the others are not refreshed."""

from typing import ClassVar

import numpy as np

from uvmsim.policies.pages.base import BYPASS, move_head, move_tail
from uvmsim.policies.pages.cycle_moe import SLOTS, Counts
from uvmsim.policies.pages.prefetch_always_max import PrefetchAlwaysMax


class PrefetchMaxPassiveMru(PrefetchAlwaysMax):
    """prefetch_always_max; a frame served often moves to the tail, others keep their place."""

    name: ClassVar[str] = "prefetch_max_passive_mru"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_max_passive_mru.bpf.c (2026)"
    t1: int = 3

    def state(self, ctx):
        return Counts(np.zeros(SLOTS, np.int64), np.array([self.t1], np.int64))

    @staticmethod
    def block_access(s, d, chunk):
        s.uses[chunk % SLOTS] += 1
        if s.uses[chunk % SLOTS] >= s.t1[0]:
            move_tail(d, chunk)
        return BYPASS


class PrefetchMaxMruExpert(PrefetchMaxPassiveMru):
    """prefetch_always_max; a frame served often moves to the tail, others to the head."""

    name: ClassVar[str] = "prefetch_max_mru_expert"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_max_mru_expert.bpf.c (2026)"

    @staticmethod
    def block_access(s, d, chunk):
        s.uses[chunk % SLOTS] += 1
        if s.uses[chunk % SLOTS] >= s.t1[0]:
            move_tail(d, chunk)
        else:
            move_head(d, chunk)
        return BYPASS
