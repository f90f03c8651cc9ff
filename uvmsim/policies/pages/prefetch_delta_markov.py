"""Which distance follows which, by block."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import BYPASS, PagePolicy, set_region

ENTRIES = 16384
"""Of its LRU_HASH. Here an entry has one possible place: on a collision the newcomer takes it, where
the LRU_HASH would drop the entry not used for longest."""
NONE = 1 << 14
"""No distance known."""
CONFIDENCE, WIDTH, MAX_DELTA = 0, 1, 2


class State(NamedTuple):
    last: np.ndarray  # int64 [blocks]: last faulted page, -1: none
    delta: np.ndarray  # int64 [blocks]: the distance that led there
    key: np.ndarray  # int64 [entries]: block and distance, -1: free
    follows: np.ndarray  # int64 [entries]: the distance that came after it
    confidence: np.ndarray  # int64 [entries]
    p: np.ndarray  # int64 [3]


class PrefetchDeltaMarkov(PagePolicy):
    """Pages where the distance that usually follows the last distance in this block leads."""

    name: ClassVar[str] = "prefetch_delta_markov"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_delta_markov.bpf.c (2026)"
    threshold: int = 2  # confidence
    pages: int = 2
    max_delta: int = 128

    def state(self, ctx):
        return State(
            np.full(ctx.n_blocks, -1, np.int64), np.full(ctx.n_blocks, NONE, np.int64),
            np.full(ENTRIES, -1, np.int64), np.zeros(ENTRIES, np.int64),
            np.zeros(ENTRIES, np.int64),
            np.array([self.threshold, self.pages, self.max_delta], np.int64),
        )  # fmt: skip

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        seen, before = s.last[block] >= 0, s.delta[block]
        now = page - s.last[block]
        s.last[block], s.delta[block] = page, NONE
        if not seen or abs(now) > s.p[MAX_DELTA]:
            return BYPASS
        s.delta[block] = now
        if before != NONE:
            key = block * 1024 + before + 512
            i = (key * 40503) % ENTRIES
            if s.key[i] != key:
                s.key[i], s.follows[i], s.confidence[i] = key, now, 1
            elif s.follows[i] == now:
                s.confidence[i] += 1
            else:
                s.follows[i], s.confidence[i] = now, max(s.confidence[i] - 1, 0)
        key = block * 1024 + now + 512
        i = (key * 40503) % ENTRIES
        if s.key[i] == key and s.confidence[i] >= s.p[CONFIDENCE]:
            at = page + s.follows[i]
            if s.follows[i] >= 0:
                set_region(region, at, at + s.p[WIDTH])
            else:
                set_region(region, at + 1 - s.p[WIDTH], at + 1)
        return BYPASS
