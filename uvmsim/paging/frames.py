"""Frames of device memory: the used list, eviction, filling (uvm_pmm_gpu.c, uvm_va_block.c)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.core.jit import inlined
from uvmsim.paging.bits import popcount, runs
from uvmsim.paging.hooks import (
    HAS_ORDER,
    block_access,
    block_activate,
    evict_prepare,
    seen_by_hooks,
)
from uvmsim.paging.tables import (
    ACTIVATED,
    COPIES,
    EVICTED,
    PAGES_IN,
    PAGES_OUT,
    READ_MOSTLY,
    SERVICES,
    ZEROED,
)
from uvmsim.policies.base import Number
from uvmsim.policies.pages.base import ACTIVATES, BYPASS, CURRENT, PAGES, move_tail


class Moved(NamedTuple):
    """What making a block resident took."""

    pages: Number
    """4 KiB pages copied in."""
    operations: Number
    """Copies."""
    fresh: bool | np.bool
    """The block's host pages had to be mapped for the copy engines first."""
    back: Number
    """Pages of the victim to copy back."""
    victim: Number
    """VA block that lost its frame, -1."""
    label: Number
    """Its chunk; negative minus 1 where it was allocated for it."""


def unlink(d, chunk):
    """Take a chunk out of the used list."""
    d.next[d.prev[chunk]] = d.next[chunk]
    d.prev[d.next[chunk]] = d.prev[chunk]


def to_tail(d, chunk):
    """Put a chunk that is in no list at the tail."""
    end = len(d.next) - 1
    tail = d.prev[end]
    d.prev[end] = d.next[tail] = chunk
    d.prev[chunk], d.next[chunk] = tail, end


def vacate(d, p, b, counters):
    """Block ``b`` loses its frame; pages to copy back."""
    chunk = d.chunk_of[b]
    back = np.int64(0) if p.advice[b] & READ_MOSTLY else np.int64(d.n_resident[b])
    unlink(d, chunk)
    d.chunk_of[b] = -1
    d.block_of[chunk] = -1
    d.n_resident[b] = 0
    for w in range(PAGES // 64):
        d.resident[b, w] = 0
    counters[EVICTED] += 1
    counters[PAGES_OUT] += back
    return back


def take_chunk(sl, d, p, counters):
    """A frame: a free one, or the head's, evicted. Nobody's is safe: uvm_pmm_gpu_unpin_allocated ends
    the protection of a block's chunk when the block is served, so the next one of the same batch may
    take it. Returns the chunk, pages to copy back, and the block that lost it (-1)."""
    if p.n_free[0] > 0:
        p.n_free[0] -= 1
        return np.int64(p.free[p.n_free[0]]), np.int64(0), np.int64(-1)
    if HAS_ORDER:
        d.n[CURRENT] = -1
        evict_prepare(sl, seen_by_hooks(d))
    chunk = np.int64(d.next[len(d.next) - 1])
    b = np.int64(d.block_of[chunk])
    return chunk, vacate(d, p, b, counters), b


def release(d, p, b, counters):
    """Block ``b`` gives its frame back to the free ones; pages to copy back."""
    p.free[p.n_free[0]] = d.chunk_of[b]
    p.n_free[0] += 1
    return vacate(d, p, b, counters)


def bring(sl, d, p, b, mask, counters):
    """`make_resident` where it is rare: not put into its caller."""
    return make_resident(sl, d, p, b, mask, counters)


@inlined
def make_resident(sl, d, p, b, mask, counters):
    """Bring ``mask``'s missing pages of block ``b`` in."""
    chunk = np.int64(d.chunk_of[b])
    back, victim = np.int64(0), np.int64(-1)
    label = chunk
    if chunk < 0:
        chunk, back, victim = take_chunk(sl, d, p, counters)
        label = -1 - chunk
        d.chunk_of[b] = chunk
        d.block_of[chunk] = b
        counters[ACTIVATED] += 1
        d.n[ACTIVATES] += 1
        to_tail(d, chunk)
        if HAS_ORDER:
            d.n[CURRENT] = chunk
            block_activate(sl, seen_by_hooks(d), chunk)
    pages = np.int64(0)
    for w in range(PAGES // 64):
        mask[w] &= ~d.resident[b, w]
        pages += popcount(mask[w])
    operations = runs(mask, PAGES // 64)
    fresh = p.mapped[b] == 0 and p.populated[b] != 0
    p.mapped[b] = 1
    for w in range(PAGES // 64):
        d.resident[b, w] |= mask[w]
    d.n_resident[b] += pages
    if p.populated[b] == 0:
        p.populated[b] = 1
        counters[ZEROED] += pages
        pages, operations = np.int64(0), np.int64(0)
    # A chunk that was allocated just now is still pinned: mark_root_chunk_used leaves it alone, and its
    # activation has put it at the tail. Of others, the policy first, then the driver's own move unless
    # bypassed.
    if label >= 0:
        action = np.int64(0)
        d.n[CURRENT] = chunk
        if HAS_ORDER:
            action = np.int64(block_access(sl, seen_by_hooks(d), chunk))
        if action != BYPASS:
            move_tail(d, chunk)  # type: ignore[arg-type]
    counters[SERVICES] += 1
    counters[PAGES_IN] += pages
    counters[COPIES] += operations
    return Moved(pages, operations, fresh, back, victim, label)
