"""Strides from block to block."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    MAX_FIRST,
    MAX_OUTER,
    drop_pending,
    migrate,
    set_region,
    whole,
)
from uvmsim.policies.pages.t1 import HotFrames

SURE = 10
"""The highest confidence."""
LAST, STRIDE, EQUAL, EXPECTED, CONFIDENCE = 0, 1, 2, 3, 4
BLOCKS, STRIDES = 0, 1


class State(NamedTuple):
    uses: np.ndarray  # int64 [cpus, slots]
    t1: np.ndarray  # int64 [1]
    h: np.ndarray  # int64 [5]: last block, stride, how often in a row, next block by it, confidence
    p: np.ndarray  # int64 [2]: blocks asked for at most, equal strides needed


class PrefetchStrideMultiblock(HotFrames):
    """prefetch_always_max; after four equal strides from block to block up to six more blocks by it."""

    name: ClassVar[str] = "prefetch_stride_multiblock"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_stride_multiblock.bpf.c (2026)"
    migrates: ClassVar[bool] = True
    blocks: int = 6  # at most; 1 + confidence / 2 of them
    strides: int = 4

    def state(self, ctx):
        p = [whole(self, "blocks", 1, 1 + SURE // 2), whole(self, "strides", 1, 1 << 32)]
        return State(
            *self.counts(), np.array([-1, 0, 0, -1, 0], np.int64), np.array(p, np.int64)
        )  # fmt: skip

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        h = s.h
        stride = block - h[LAST]
        if stride == 0:
            return BYPASS
        if h[LAST] >= 0:
            h[EQUAL] = h[EQUAL] + 1 if stride == h[STRIDE] else 1
            h[STRIDE] = stride
        found = h[EQUAL] >= s.p[STRIDES]
        change = 1 if found else -2
        if block == h[EXPECTED]:
            change += 2
        h[CONFIDENCE] = min(max(h[CONFIDENCE] + change, 0), SURE)
        h[LAST], h[EXPECTED] = block, -1
        if found:
            h[EXPECTED] = block + h[STRIDE]
            drop_pending(d)
            for k in range(1, min(1 + h[CONFIDENCE] // 2, s.p[BLOCKS]) + 1):
                migrate(d, block + k * h[STRIDE])
        return BYPASS
