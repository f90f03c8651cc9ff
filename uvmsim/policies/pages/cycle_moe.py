"""Frames activated three times are called hot (T1)."""

from typing import ClassVar

from uvmsim.policies.pages.prefetch_always_max import PrefetchAlwaysMax
from uvmsim.policies.pages.t1 import HotFrames


class EvictionCycleMoe(HotFrames):
    """A frame allocated for the third time asks for the tail, where it already is."""

    name: ClassVar[str] = "eviction_cycle_moe"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/eviction_cycle_moe.bpf.c (2026)"


class PrefetchAlwaysMaxCycleMoe(HotFrames, PrefetchAlwaysMax):
    """prefetch_always_max with eviction_cycle_moe."""

    name: ClassVar[str] = "prefetch_always_max_cycle_moe"
    source: ClassVar[str] = (
        "eunomia-bpf/gpu_ext extension/prefetch_always_max_cycle_moe.bpf.c (2026)"
    )
