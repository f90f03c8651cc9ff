"""The questions of a stream put to a policy, and what it answered.

`play` is a template as `uvmsim.paging.driver.run_kernels` is. Which chunk a block gets, who leaves
and what is resident follow from the stream alone, so that two policies are asked the same to the end;
only the used list is a policy's own.
"""

from __future__ import annotations

import numpy as np

from uvmsim.core.read_only import read_only
from uvmsim.paging.hooks import (
    after_batch,
    block_access,
    block_activate,
    evict_prepare,
    page_prefetch,
    page_prefetch_iter,
    seen_by_hooks,
)
from uvmsim.policies.pages.base import (
    ACTIVATES,
    ASKED,
    BATCH,
    BYPASS,
    CURRENT,
    ENTER_LOOP,
    FIRST,
    MAX_FIRST,
    MAX_OUTER,
    NOW_NS,
    OUTER,
    move_tail,
)
from uvmsim.studies.decisions.stream import FAULT, SERVE

BIG = 16
"""Pages of 64 KiB."""
ANSWER = 6
"""Columns of an answer: of a fault the action and the region [first, outer), 0 and 0 for no pages; of
a service the head of the list after evict_prepare (-1: it was not asked), where block_activate left
the chunk (-1: not asked), the action of block_access, and where the chunk is then (1 head, 2 tail, 3
both, 0 between); of the end of a batch, in the last two columns, how many blocks were asked for and
the first of them (-1)."""


def where(d, chunk):
    """A chunk's place in the list."""
    end = len(d.next) - 1
    return (1 if d.next[end] == chunk else 0) + (2 if d.prev[end] == chunk else 0)


def ask_fault(s, d, block, page, region, row):
    """A page has faulted."""
    n_pages = np.int64(d.n_pages[block])
    for w in range(len(d.accessed)):
        d.accessed[w] = d.resident[block, w]
    first = page // BIG * BIG
    for p in range(first, min(first + BIG, n_pages)):
        d.accessed[p >> 6] |= np.uint64(1) << np.uint64(p & 63)
    region[MAX_FIRST], region[MAX_OUTER], region[FIRST], region[OUTER] = 0, n_pages, 0, 0
    seen, allowed = seen_by_hooks(d), read_only(region)
    action = np.int64(page_prefetch(s, seen, block, page, allowed))
    if action == ENTER_LOOP:
        size = np.int64(1)
        while True:
            first = page // size * size
            outer, counter = min(first + size, n_pages), np.int64(0)
            for p in range(first, outer):
                counter += np.int64(d.accessed[p >> 6] >> np.uint64(p & 63) & np.uint64(1))
            page_prefetch_iter(s, seen, block, first, outer, counter, allowed)
            if size >= n_pages:
                break
            size *= 2
    row[0] = action if action in (BYPASS, ENTER_LOOP) else 0
    if row[0] != 0 and region[OUTER] > region[FIRST]:
        row[1], row[2] = region[FIRST], region[OUTER]


def ask_service(s, d, block, row):
    """A block gets memory: a chunk, if it has none."""
    chunk, end = np.int64(d.chunk_of[block]), np.int64(len(d.next) - 1)
    row[0] = row[1] = -1
    if chunk < 0:
        chunk = d.n[ACTIVATES] % end  # the frame that was given longest ago
        leaves = np.int64(d.block_of[chunk])
        if leaves >= 0:
            d.n[CURRENT] = -1
            evict_prepare(s, seen_by_hooks(d))
            row[0] = d.next[end]
            d.next[d.prev[chunk]], d.prev[d.next[chunk]] = d.next[chunk], d.prev[chunk]
            d.chunk_of[leaves] = -1
            for w in range(len(d.accessed)):
                d.resident[leaves, w] = 0
        d.chunk_of[block], d.block_of[chunk] = chunk, block
        d.n[ACTIVATES] += 1
        tail = d.prev[end]
        d.prev[end] = d.next[tail] = chunk
        d.prev[chunk], d.next[chunk] = tail, end
        d.n[CURRENT] = chunk
        block_activate(s, seen_by_hooks(d), chunk)
        row[1] = where(d, chunk)
    for w in range(len(d.accessed)):
        d.resident[block, w] |= d.accessed[w]
    d.n[CURRENT] = chunk
    action = np.int64(block_access(s, seen_by_hooks(d), chunk))
    row[2] = 1 if action == BYPASS else 0
    if action != BYPASS:
        move_tail(d, chunk)
    row[3] = where(d, chunk)


def play(s, d, q, region, answers):
    """All questions of ``q``; ``answers`` int64 [N, ANSWER]."""
    for i in range(len(q.kind)):
        d.n[NOW_NS] += q.wait_ns[i]
        row = answers[i]
        if q.kind[i] == FAULT:
            ask_fault(s, d, q.block[i], q.page[i], region, row)
        elif q.kind[i] == SERVE:
            ask_service(s, d, q.block[i], row)
        else:
            d.n[CURRENT] = len(d.block_of)
            after_batch(s, seen_by_hooks(d))
        row[5] = -1
        if q.kind[i] > SERVE:
            for j in range(d.n[ASKED]):  # the driver brings in blocks of the process that faulted
                if d.tenant_of[d.wanted[j]] == d.tenant_of[q.block[i]]:
                    row[5] = d.wanted[j] if row[4] == 0 else row[5]
                    row[4] += 1
            d.n[BATCH] += 1
            d.n[ASKED] = 0
