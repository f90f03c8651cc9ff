"""Chunks whose frame was served most often stay."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import BYPASS, PagePolicy, move_head, move_tail

CAP = 255


class State(NamedTuple):
    freq: np.ndarray  # int64 [chunks]: of the frame, not of the data in it


class EvictionLfu(PagePolicy):
    """New chunks go to the head; one whose count grows moves to the tail."""

    name: ClassVar[str] = "eviction_lfu"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/eviction_lfu.bpf.c"

    def state(self, ctx):
        return State(np.zeros(ctx.n_chunks, np.int64))

    @staticmethod
    def block_activate(s, d, chunk):
        s.freq[chunk] = 1
        move_head(d, chunk)
        return BYPASS

    @staticmethod
    def block_access(s, d, chunk):
        if s.freq[chunk] < CAP:
            s.freq[chunk] += 1
            move_tail(d, chunk)
        return BYPASS
