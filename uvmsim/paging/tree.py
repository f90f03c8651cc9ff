"""The density prefetcher (NVIDIA/open-gpu-kernel-modules 575.57.08, uvm_perf_prefetch.c)."""

from __future__ import annotations

from uvmsim.core.jit import kernel_part
from uvmsim.paging.bits import BIG, count, fill
from uvmsim.policies.pages.base import FIRST, OUTER


@kernel_part
def grow(accessed, faulted, n_pages):
    """Every 64 KiB big page with a fault counts as accessed (grow_fault_granularity)."""
    for first in range(0, n_pages, BIG):
        outer = min(first + BIG, n_pages)
        if count(faulted, first, outer) > 0:
            fill(accessed, first, outer)


@kernel_part
def densest(accessed, page, n_pages, threshold, region):
    """The largest subregion around ``page`` of which more than ``threshold`` % are accessed
    (compute_prefetch_region): from the leaf to the root, the last one that passes wins; empty if
    none does."""
    size = 1
    region[FIRST] = region[OUTER] = page
    while True:
        first = page // size * size
        outer = min(first + size, n_pages)
        if count(accessed, first, outer) * 100 > (outer - first) * threshold:
            region[FIRST], region[OUTER] = first, outer
        if size >= n_pages:
            break
        size *= 2
