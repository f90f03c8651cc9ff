"""Distance to the layer's next turn, from a table of the model's layout."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import DEFAULT, layer_of, move_head, move_tail
from uvmsim.policies.pages.prefetch_always_max import PrefetchAlwaysMax
from uvmsim.policies.pages.t1 import HotFrames, counted


class State(NamedTuple):
    uses: np.ndarray  # int64 [cpus, slots]
    t1: np.ndarray  # int64 [1]
    boundaries: np.ndarray  # int64 [layers + 1]: first block of each layer, and the end
    current: np.ndarray  # int64 [1]: layer of the chunk allocated last


class PrefetchTemplateBelady(HotFrames, PrefetchAlwaysMax):
    """prefetch_always_max; frames allocated often ask for the tail, past layers for the head."""

    name: ClassVar[str] = "prefetch_template_belady"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_template_belady.bpf.c (2026)"

    def state(self, ctx):
        return State(*self.counts(), ctx.boundaries.astype(np.int64), np.zeros(1, np.int64))

    @staticmethod
    def block_activate(s, d, chunk):
        layer, layers = layer_of(s.boundaries, d.block_of[chunk]), len(s.boundaries) - 1
        if counted(s.uses, d, chunk) >= s.t1[0]:
            move_tail(d, chunk)
        elif layer >= 0 and 2 * ((layer - s.current[0] + layers) % layers) > layers:
            move_head(d, chunk)
        if layer >= 0:
            s.current[0] = layer
        return DEFAULT
