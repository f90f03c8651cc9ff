"""prefetch_cross_block_v2, not too often."""

from typing import ClassVar

from uvmsim.policies.pages.prefetch_cross_block_v2 import ASKED_NS, GAP_NS, PrefetchCrossBlockV2


class PrefetchThrottledXb(PrefetchCrossBlockV2):
    """prefetch_cross_block_v2 with a least time between two requests, and the driver's order."""

    name: ClassVar[str] = "prefetch_throttled_xb"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_throttled_xb.bpf.c (2026)"
    evict: str = "lru"
    gap_us: int = 1000  # our choice

    def state(self, ctx):
        s = super().state(ctx)
        s.h[GAP_NS] = self.gap_us * 1000
        s.h[ASKED_NS] = -s.h[GAP_NS]
        return s
