"""What comes along with a fault (uvm_perf_prefetch.c, compute_prefetch_mask)."""

from __future__ import annotations

import numpy as np

from uvmsim.core.jit import inlined
from uvmsim.core.read_only import read_only
from uvmsim.paging.bits import count, fill, lowest
from uvmsim.paging.hooks import HAS_PREFETCH, page_prefetch, page_prefetch_iter, seen_by_hooks
from uvmsim.paging.tables import PREFER_GPU
from uvmsim.paging.tree import densest, grow
from uvmsim.policies.pages.base import BYPASS, ENTER_LOOP, FIRST, MAX_FIRST, MAX_OUTER, OUTER, PAGES


@inlined
def prefetch_mask(sp, d, p, x, b, faulted, threshold):
    """Pages to bring in beside those that faulted, into ``x.mask`` (compute_prefetch_mask)."""
    n_pages = np.int64(d.n_pages[b])
    region = x.region
    for w in range(PAGES // 64):
        x.mask[w] = 0
    if p.populated[b] == 0 and p.advice[b] & PREFER_GPU:
        fill(x.mask, 0, n_pages)  # first touch, data nowhere, at its preferred location
        return
    for w in range(PAGES // 64):
        d.accessed[w] = d.resident[b, w] | faulted[w]
    grow(d.accessed, faulted, n_pages)
    for w in range(PAGES // 64):
        bits = faulted[w]
        while bits:
            page = np.int64(64 * w + lowest(bits))
            bits &= bits - np.uint64(1)
            region[MAX_FIRST], region[MAX_OUTER] = 0, n_pages
            region[FIRST] = region[OUTER] = 0
            action = np.int64(0)
            if HAS_PREFETCH:
                seen, allowed = seen_by_hooks(d), read_only(region)
                action = np.int64(page_prefetch(sp, seen, np.int64(b), page, allowed))
                if action == ENTER_LOOP:
                    size = np.int64(1)
                    while True:
                        first = page & -size
                        outer = min(first + size, n_pages)
                        counter = count(d.accessed, first, outer)
                        page_prefetch_iter(sp, seen, np.int64(b), first, outer, counter, allowed)
                        if size >= n_pages:
                            break
                        size *= 2
            if action != BYPASS and action != ENTER_LOOP:
                densest(d.accessed, page, n_pages, threshold, region)
            first = min(max(region[FIRST], 0), n_pages)  # type: ignore[arg-type]
            outer = min(max(region[OUTER], first), n_pages)
            fill(x.mask, first, outer)
            if not HAS_PREFETCH:
                bits &= ~x.mask[w]  # the tree did not change: the region is that of these pages too
            if outer == n_pages and outer > first:
                return
