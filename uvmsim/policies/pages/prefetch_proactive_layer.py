"""The next layer's first blocks, when a layer begins."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    MAX_FIRST,
    MAX_OUTER,
    PagePolicy,
    layer_of,
    migrate,
    set_region,
)


class State(NamedTuple):
    boundaries: np.ndarray  # int64 [layers + 1]: first block of each layer, and the end
    h: np.ndarray  # int64 [2]: current layer, blocks to ask for


class PrefetchProactiveLayer(PagePolicy):
    """prefetch_always_max, and the first blocks of the next layer when a layer is entered."""

    name: ClassVar[str] = "prefetch_proactive_layer"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_proactive_layer.bpf.c (2026)"
    migrates: ClassVar[bool] = True
    blocks: int = 16  # our choice

    def state(self, ctx):
        return State(ctx.boundaries.astype(np.int64), np.array([-1, self.blocks], np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        layer = layer_of(s.boundaries, block)
        if layer >= 0 and layer != s.h[0]:
            s.h[0] = layer
            following = (layer + 1) % (len(s.boundaries) - 1)
            first, end = s.boundaries[following], s.boundaries[following + 1]
            for b in range(first, min(first + s.h[1], end)):
                migrate(d, b)
        return BYPASS
