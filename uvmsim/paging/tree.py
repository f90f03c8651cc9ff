"""The density prefetcher (NVIDIA/open-gpu-kernel-modules 575.57.08, uvm_perf_prefetch.c)."""

from __future__ import annotations

import numpy as np

from uvmsim.core.jit import inlined
from uvmsim.paging.bits import big_pages, popcount, word_mask
from uvmsim.policies.pages.base import FIRST, OUTER, PAGES

PAIRS, FOURS = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
EIGHTS, SIXTEENS = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x00FF00FF00FF00FF)
THIRTY_TWOS = np.uint64(0x0000FFFF0000FFFF)
"""Every second field of 1, 2, 4, 8, 16 bits."""


@inlined
def grow(accessed, faulted, n_pages):
    """Every 64 KiB big page with a fault counts as accessed (grow_fault_granularity)."""
    for w in range(PAGES // 64):
        if faulted[w]:
            accessed[w] |= big_pages(faulted[w]) & word_mask(np.int64(0), n_pages, w)


@inlined
def densest(accessed, page, n_pages, threshold, region):
    """The largest subregion around ``page`` of which more than ``threshold`` % are accessed
    (compute_prefetch_region): from the leaf to the root, the last one that passes wins; empty if
    none does."""
    w, at = page >> 6, page & 63
    x = accessed[w]
    best, width = np.int64(0), np.int64(0)
    # Counts of subregions of 1, 2, 4 .. 64 pages lie side by side in a word (Hacker's Delight, 5-1).
    best, width = _level(x, at, np.int64(1), page, n_pages, threshold, best, width)
    x = (x & PAIRS) + (x >> np.uint64(1) & PAIRS)
    best, width = _level(x, at, np.int64(2), page, n_pages, threshold, best, width)
    x = (x & FOURS) + (x >> np.uint64(2) & FOURS)
    best, width = _level(x, at, np.int64(4), page, n_pages, threshold, best, width)
    x = (x & EIGHTS) + (x >> np.uint64(4) & EIGHTS)
    best, width = _level(x, at, np.int64(8), page, n_pages, threshold, best, width)
    x = (x & SIXTEENS) + (x >> np.uint64(8) & SIXTEENS)
    best, width = _level(x, at, np.int64(16), page, n_pages, threshold, best, width)
    x = (x & THIRTY_TWOS) + (x >> np.uint64(16) & THIRTY_TWOS)
    best, width = _level(x, at, np.int64(32), page, n_pages, threshold, best, width)
    n = np.int64(x & np.uint64(0xFFFFFFFF)) + np.int64(x >> np.uint64(32))
    size = np.int64(64)
    total = np.int64(0)
    for word in range(PAGES // 64):
        total += popcount(accessed[word])
    # Of a whole block: past this size no subregion can pass.
    while n_pages < PAGES or total * 100 > size * threshold:
        first = page & -size
        outer = min(first + size, n_pages)
        if n * 100 > (outer - first) * threshold:
            best, width = first, outer - first
        if size >= n_pages:
            break
        # The other half of the next one.
        for other in range((first ^ size) >> 6, ((first ^ size) + size) >> 6):
            n += popcount(accessed[other])
        size *= 2
    region[FIRST], region[OUTER] = (best, best + width) if width > 0 else (page, page)


@inlined
def _level(counts, at, size, page, n_pages, threshold, best, width):
    """One level of up to 32 pages, whose counts are fields of ``size`` bits."""
    first = page & -size
    outer = min(first + size, n_pages)
    field = (np.uint64(1) << np.uint64(size)) - np.uint64(1)
    n = np.int64(counts >> np.uint64(at & -size) & field)
    if n * 100 > (outer - first) * threshold:
        return first, outer - first
    return best, width
