"""Time between activations of a frame."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import DEFAULT, NOW_NS, move_tail, whole
from uvmsim.policies.pages.prefetch_always_max import PrefetchAlwaysMax
from uvmsim.policies.pages.t1 import SLOTS

A_DAY_MS = 86_400_000


class State(NamedTuple):
    last: np.ndarray  # int64 [slots]: ns of the last activation, -1: none
    mean: np.ndarray  # int64 [slots]: ns, moving average of the intervals, -1: none
    near: np.ndarray  # int64 [1]: ns


class PrefetchReuseDist(PrefetchAlwaysMax):
    """prefetch_always_max; a frame that turns over fast asks for the tail, where it already is."""

    name: ClassVar[str] = "prefetch_reuse_dist"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_reuse_dist.bpf.c (2026)"
    near_ms: int = 50

    def state(self, ctx):
        near = np.array([1_000_000 * whole(self, "near_ms", 0, A_DAY_MS)], np.int64)
        return State(np.full(SLOTS, -1, np.int64), np.full(SLOTS, -1, np.int64), near)

    @staticmethod
    def block_activate(s, d, chunk):
        i, now = chunk % SLOTS, d.n[NOW_NS]
        if s.last[i] >= 0:
            gap = now - s.last[i]
            s.mean[i] = gap if s.mean[i] < 0 else (3 * s.mean[i] + gap) // 4
            if s.mean[i] < s.near[0]:
                move_tail(d, chunk)
        s.last[i] = now
        return DEFAULT
