"""Whole blocks; frames activated three times (T1) ask to be kept, the others to stay or to go.

Both decide in block_activate, the last thing that a service calls for a chunk which it allocates: what
they ask for stands until somebody is evicted (docs/page-policies.md, "What moves at the head does").
"""

from typing import ClassVar

from uvmsim.policies.pages.base import DEFAULT, move_head, move_tail
from uvmsim.policies.pages.prefetch_always_max import PrefetchAlwaysMax
from uvmsim.policies.pages.t1 import HotFrames, counted


class PrefetchMaxPassiveMru(HotFrames, PrefetchAlwaysMax):
    """prefetch_always_max; a frame allocated often asks for the tail, others ask for nothing."""

    name: ClassVar[str] = "prefetch_max_passive_mru"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_max_passive_mru.bpf.c (2026)"


class PrefetchMaxMruExpert(PrefetchMaxPassiveMru):
    """prefetch_always_max; a frame allocated often asks for the tail, others for the head."""

    name: ClassVar[str] = "prefetch_max_mru_expert"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_max_mru_expert.bpf.c (2026)"

    @staticmethod
    def block_activate(s, d, chunk):
        if counted(s.uses, d, chunk) >= s.t1[0]:
            move_tail(d, chunk)
        else:
            move_head(d, chunk)
        return DEFAULT
