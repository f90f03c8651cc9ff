"""A later layer's first bytes, when a layer begins."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    MAX_FIRST,
    MAX_OUTER,
    PAGES,
    drop_pending,
    layer_of,
    migrate,
    set_region,
    whole,
)
from uvmsim.policies.pages.t1 import HotFrames

BLOCK_BYTES = PAGES * 4096
FEW = 10
"""Faults that a token has at least: an address that falls back earlier begins none."""
LAYER, LAST, FAULTS = 0, 1, 2
BLOCKS, AHEAD = 0, 1


class State(NamedTuple):
    uses: np.ndarray  # int64 [cpus, slots]
    t1: np.ndarray  # int64 [1]
    boundaries: np.ndarray  # int64 [layers + 1]: first block of each layer, and the end
    h: np.ndarray  # int64 [3]: layer of this token (-1: none yet), last block, faults of this token
    p: np.ndarray  # int64 [2]: blocks to ask for, layers ahead


class PrefetchProactiveLayer(HotFrames):
    """prefetch_always_max, and the first bytes of a layer ahead when a token enters a layer."""

    name: ClassVar[str] = "prefetch_proactive_layer"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_proactive_layer.bpf.c (2026)"
    migrates: ClassVar[bool] = True
    prefetch_bytes: int = 4 << 20
    ahead: int = 1

    def state(self, ctx):
        blocks = -(-whole(self, "prefetch_bytes", 0, 1 << 50) // BLOCK_BYTES)
        return State(
            *self.counts(), ctx.boundaries.astype(np.int64), np.array([-1, -1, 0], np.int64),
            np.array([blocks, whole(self, "ahead", 1, 3)], np.int64),
        )  # fmt: skip

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        h = s.h
        if block < h[LAST] and h[FAULTS] > FEW:  # a token begins
            h[LAYER], h[FAULTS] = -1, 0
        h[LAST] = block
        h[FAULTS] += 1
        layer = layer_of(s.boundaries, block)
        if layer > h[LAYER]:
            h[LAYER] = layer
            target = (layer + s.p[AHEAD]) % (len(s.boundaries) - 1)
            first, end = s.boundaries[target], s.boundaries[target + 1]
            drop_pending(d)
            for b in range(first, min(first + s.p[BLOCKS], end)):
                migrate(d, b)
        return BYPASS
