"""What the last token brought in, once more."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    DEFAULT,
    MAX_FIRST,
    MAX_OUTER,
    PagePolicy,
    layer_of,
    migrate,
    set_region,
)


class State(NamedTuple):
    boundaries: np.ndarray  # int64 [layers + 1]: first block of each layer, and the end
    activated: np.ndarray  # uint8 [blocks]: 1 where this token's faults allocated the block
    layer: np.ndarray  # int64 [1]: layer of the last fault in one


class PrefetchMoeExpert(PagePolicy):
    """prefetch_always_max, and at a token's start all blocks that the token before had allocated."""

    name: ClassVar[str] = "prefetch_moe_expert"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_moe_expert.bpf.c (2026)"
    migrates: ClassVar[bool] = True

    def state(self, ctx):
        activated = np.zeros(ctx.n_blocks, np.uint8)
        return State(ctx.boundaries.astype(np.int64), activated, np.full(1, -1, np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        layer = layer_of(s.boundaries, block)
        if layer >= 0:
            if layer < s.layer[0]:  # layers rise within a token
                for b in range(len(s.activated)):
                    if s.activated[b]:
                        migrate(d, b)
                        s.activated[b] = 0
            s.layer[0] = layer
        return BYPASS

    @staticmethod
    def block_activate(s, d, chunk):
        s.activated[d.block_of[chunk]] = 1
        return DEFAULT
