"""The whole block on any fault."""

from typing import ClassVar

from uvmsim.policies.pages.base import BYPASS, MAX_FIRST, MAX_OUTER, PagePolicy, set_region


class PrefetchAlwaysMax(PagePolicy):
    """Any fault brings its whole 2 MiB block."""

    name: ClassVar[str] = "prefetch_always_max"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_always_max.bpf.c"

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        return BYPASS
