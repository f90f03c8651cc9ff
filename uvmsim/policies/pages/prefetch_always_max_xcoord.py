"""Whole blocks; fault rates for the CPU's scheduler."""

from typing import ClassVar

from uvmsim.policies.pages.prefetch_always_max import PrefetchAlwaysMax


class PrefetchAlwaysMaxXcoord(PrefetchAlwaysMax):
    """prefetch_always_max; what it tells a CPU scheduler moves no page, and that is not simulated."""

    name: ClassVar[str] = "prefetch_always_max_xcoord"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/*_xcoord.bpf.c (2026), the memory side"
