"""Strides within a block."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import BYPASS, PAGES, PagePolicy, set_region, whole

CAPACITY = 4096
"""Entries of its BPF_MAP_TYPE_HASH: further blocks get none, as an update of a full map fails."""
LARGE = 1 << 32
THRESHOLD, WIDTH, MAX_STRIDE, ENTRIES = 0, 1, 2, 3


class State(NamedTuple):
    last: np.ndarray  # int64 [blocks]: last faulted page, -1: no entry
    stride: np.ndarray  # int64 [blocks]
    confidence: np.ndarray  # int64 [blocks]
    p: np.ndarray  # int64 [4]


def stride_state(policy, n_blocks: int) -> State:
    """Empty tables for ``policy``'s parameters; `InputError` for one out of range."""
    p = [whole(policy, "threshold", 0, LARGE), whole(policy, "pages", 0, PAGES)]
    p += [whole(policy, "max_stride", 0, PAGES), 0]
    return State(
        np.full(n_blocks, -1, np.int64), np.zeros(n_blocks, np.int64), np.zeros(n_blocks, np.int64),
        np.array(p, np.int64),
    )  # fmt: skip


class PrefetchStride(PagePolicy):
    """A few pages a stride ahead, once a block has shown the same stride often enough."""

    name: ClassVar[str] = "prefetch_stride"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_stride.bpf.c"
    threshold: int = 2  # confidence (-t)
    pages: int = 2  # (-n)
    max_stride: int = 128  # (-m)

    def state(self, ctx):
        return stride_state(self, ctx.n_blocks)

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        if s.last[block] < 0:
            if s.p[ENTRIES] < CAPACITY:
                s.p[ENTRIES] += 1
                s.last[block] = page
            return BYPASS
        now = page - s.last[block]
        if now == 0:
            return BYPASS
        s.last[block] = page
        if now == s.stride[block]:
            s.confidence[block] += 1
        else:
            s.confidence[block] = max(s.confidence[block] - 1, 0)
            if abs(now) > s.p[MAX_STRIDE]:
                return BYPASS
            s.stride[block] = now
        if s.confidence[block] >= s.p[THRESHOLD]:
            at = page + s.stride[block]
            if s.stride[block] > 0:
                set_region(region, at, at + s.p[WIDTH])
            else:
                set_region(region, at + 1 - s.p[WIDTH], at + 1)
        return BYPASS
