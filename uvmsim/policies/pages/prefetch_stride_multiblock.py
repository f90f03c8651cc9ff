"""Strides from block to block."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    MAX_FIRST,
    MAX_OUTER,
    PagePolicy,
    migrate,
    set_region,
)

BLOCKS, THRESHOLD, LAST, STRIDE, CONFIDENCE = 0, 1, 2, 3, 4


class State(NamedTuple):
    h: np.ndarray  # int64 [5]: blocks, threshold, last block, stride, confidence


class PrefetchStrideMultiblock(PagePolicy):
    """prefetch_always_max, and `blocks` more where faults move from block to block by a stride."""

    name: ClassVar[str] = "prefetch_stride_multiblock"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_stride_multiblock.bpf.c (2026)"
    migrates: ClassVar[bool] = True
    blocks: int = 1  # K: 1 to 6
    threshold: int = 2

    def state(self, ctx):
        return State(np.array([self.blocks, self.threshold, -1, 0, 0], np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        stride = block - s.h[LAST]
        if stride == 0:
            return BYPASS
        if s.h[LAST] >= 0:
            if stride == s.h[STRIDE]:
                s.h[CONFIDENCE] += 1
            else:
                s.h[CONFIDENCE], s.h[STRIDE] = max(s.h[CONFIDENCE] - 1, 0), stride
        s.h[LAST] = block
        if s.h[CONFIDENCE] >= s.h[THRESHOLD]:
            for k in range(1, s.h[BLOCKS] + 1):
                migrate(d, block + k * s.h[STRIDE])
        return BYPASS
