"""Bitmaps of a block's 512 pages: uint64 [8]."""

from __future__ import annotations

import numpy as np

from uvmsim.core.jit import kernel_part

ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
BIG = 16
"""4 KiB pages of a 64 KiB big page."""


@kernel_part
def popcount(x):
    """Bits of a word that are set (Warren, Hacker's Delight, 5-1)."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel_part
def big_pages(x):
    """All bits of every 16 of which one is set: the 64 KiB big pages of a word."""
    low = np.uint64(0x7FFF7FFF7FFF7FFF)
    high = ((x & low) + low | x) & ~low  # the top bit of each 16 that are not all 0
    return (high >> np.uint64(BIG - 1)) * np.uint64(0xFFFF)


@kernel_part
def lowest(x):
    """Number of the lowest set bit; 64 if there is none."""
    return popcount(~x & (x - np.uint64(1)))


@kernel_part
def word_mask(first, outer, w):
    """The bits of word ``w`` that lie in pages [first, outer)."""
    lo, hi = max(first - 64 * w, 0), min(outer - 64 * w, 64)
    if lo >= hi:
        return np.uint64(0)
    mask = ONES << np.uint64(lo)
    if hi < 64:
        mask &= (np.uint64(1) << np.uint64(hi)) - np.uint64(1)
    return mask


@kernel_part
def fill(bits, first, outer):
    """Set pages [first, outer)."""
    if first >= outer:
        return
    for w in range(first >> 6, ((outer - 1) >> 6) + 1):
        bits[w] |= word_mask(first, outer, w)


@kernel_part
def count(bits, first, outer):
    """Set pages in [first, outer)."""
    n = np.int64(0)
    if first < outer:
        for w in range(first >> 6, ((outer - 1) >> 6) + 1):
            n += popcount(bits[w] & word_mask(first, outer, w))
    return n


@kernel_part
def next_clear(bits, page, outer):
    """First page in [page, outer) that is not set; ``outer`` if all are."""
    while page < outer:
        w = page >> 6
        gaps = ~bits[w] & word_mask(page, outer, w)
        if gaps:
            return 64 * w + lowest(gaps)
        page = 64 * (w + 1)
    return outer


@kernel_part
def runs(bits, n):
    """Contiguous runs of set pages, cut at 64 KiB boundaries: copy operations."""
    total = np.int64(0)
    mask = np.uint64(0x0001000100010001)  # a run that reaches a big page begins there anew
    for w in range(n):
        x = bits[w]
        total += popcount(x & ~(x << np.uint64(1)) | (x & mask))
    return total
