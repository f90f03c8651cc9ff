"""Probation and protection by generations."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import ACTIVATES, BYPASS, PagePolicy, move_head, move_tail

SLOTS = 16384
GAP = 2


class State(NamedTuple):
    last: np.ndarray  # int64 [slots]: generation of the last access
    seen: np.ndarray  # int64 [slots]: generations in a row, with gaps of at most GAP
    length: np.ndarray  # int64 [1]: activations a generation


class Eviction2qApprox(PagePolicy):
    """Seen in one generation: head; in two that are close to each other: tail."""

    name: ClassVar[str] = "eviction_2q_approx"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/eviction_2q_approx.bpf.c (2026)"
    generation: int = 0  # activations; 0: as many as there are chunks (our choice)

    def state(self, ctx):
        length = np.array([self.generation if self.generation > 0 else ctx.n_chunks], np.int64)
        return State(np.full(SLOTS, -1, np.int64), np.zeros(SLOTS, np.int64), length)

    @staticmethod
    def block_access(s, d, chunk):
        i, now = chunk % SLOTS, d.n[ACTIVATES] // s.length[0]
        if s.last[i] < 0 or now - s.last[i] > GAP:
            s.seen[i] = 1
        elif now > s.last[i]:
            s.seen[i] += 1
        s.last[i] = now
        if s.seen[i] >= 2:
            move_tail(d, chunk)
        else:
            move_head(d, chunk)
        return BYPASS
