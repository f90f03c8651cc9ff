"""Distance to the layer's next turn, from a table of the model's layout."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import BYPASS, DEFAULT, layer_of, move_head, move_tail
from uvmsim.policies.pages.prefetch_always_max import PrefetchAlwaysMax

CURRENT_LAYER, NEAR = 0, 1


class State(NamedTuple):
    boundaries: np.ndarray  # int64 [layers + 1]: first block of each layer, and the end
    n: np.ndarray  # int64 [2]: current layer, distance that counts as near


class PrefetchTemplateBelady(PrefetchAlwaysMax):
    """prefetch_always_max; chunks of a layer that is due soon go to the tail, others to the head."""

    name: ClassVar[str] = "prefetch_template_belady"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_template_belady.bpf.c (2026)"
    near: int = 3

    def state(self, ctx):
        return State(ctx.boundaries.astype(np.int64), np.array([0, self.near], np.int64))

    @staticmethod
    def block_activate(s, d, chunk):
        layer = layer_of(s.boundaries, d.block_of[chunk])
        if layer >= 0:
            s.n[CURRENT_LAYER] = layer
        return DEFAULT

    @staticmethod
    def block_access(s, d, chunk):
        layer, layers = layer_of(s.boundaries, d.block_of[chunk]), len(s.boundaries) - 1
        if layer < 0:
            return DEFAULT
        if (layer - s.n[CURRENT_LAYER] + layers) % layers <= s.n[NEAR]:
            move_tail(d, chunk)
        else:
            move_head(d, chunk)
        return BYPASS
