"""prefetch_stride with a sampled frequency."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import BYPASS, move_tail
from uvmsim.policies.pages.prefetch_stride import PrefetchStride, stride_state

CAP = 255


class State(NamedTuple):
    last: np.ndarray
    stride: np.ndarray
    confidence: np.ndarray
    p: np.ndarray
    freq: np.ndarray  # int64 [chunks]
    sample: np.ndarray  # int64 [2]: accesses so far, every how many is looked at


class PrefetchStrideLfu(PrefetchStride):
    """prefetch_stride; every 256th access moves its chunk to the tail, nothing else moves."""

    name: ClassVar[str] = "prefetch_stride_lfu"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_stride_lfu.bpf.c (2026)"
    sample: int = 256

    def state(self, ctx):
        sample = np.array([0, max(self.sample, 1)], np.int64)
        freq = np.zeros(ctx.n_chunks, np.int64)
        return State(*stride_state(self, ctx.n_blocks), freq, sample)

    @staticmethod
    def block_activate(s, d, chunk):
        s.freq[chunk] = 1
        return BYPASS

    @staticmethod
    def block_access(s, d, chunk):
        s.sample[0] += 1
        if s.sample[0] % s.sample[1] == 0 and s.freq[chunk] < CAP:
            s.freq[chunk] += 1
            move_tail(d, chunk)
        return BYPASS
