"""The fault buffer: which touches miss a page, and what a batch holds
(uvm_gpu_replayable_faults.c).
"""

from __future__ import annotations

import numpy as np

from uvmsim.paging.bits import ONES, lowest, next_clear, popcount
from uvmsim.paging.kernels import Kernels
from uvmsim.paging.tables import ACCESSED_BY, ENTRIES, FAULTS, REMOTE, REMOTE_FLAG, Tables
from uvmsim.policies.pages.base import BATCH, PAGES

OVERTAKING = 4
"""Neighbouring SMs whose faults overtake one another in the buffer. An estimate: no row tells."""
LOOK_BURST = 2
"""Pages of a touch that are in the buffer before another touch's are."""
ENTRY_TENTHS = 34
"""Tenths of entries to a page that is missing: several warps read it, each asks for it again while it
waits, and some entries are of pages that came meanwhile. Seen in six cold runs on an H100: 26 to 38
(experiments/paging_driver)."""

PLACE_BITS = 20
"""Of a batch's blocks: far more than a batch has entries."""


def is_remote(d, p, b):
    """Whether kernels read block ``b`` across the link instead of faulting."""
    return (p.advice[b] & REMOTE_FLAG) != 0 or (
        (p.advice[b] & ACCESSED_BY) != 0 and d.chunk_of[b] < 0
    )


def missing_from(d, p, page, last, counters):
    """First page in [page, last) that is neither resident nor read remotely; counts those read
    remotely in all of it."""
    found = last
    while page < last:
        b = page // PAGES
        end = min((b + 1) * PAGES, last)
        if is_remote(d, p, b):
            counters[REMOTE] += end - page
        elif found == last and d.n_resident[b] != d.n_pages[b]:
            q = next_clear(d.resident[b], page - b * PAGES, end - b * PAGES) + b * PAGES
            if q < end:
                found = q
        page = end
    return found


def next_missing(d, p, page, last):
    """`missing_from` without counting remote reads again."""
    while page < last:
        b = page // PAGES
        if d.n_resident[b] == 0 and p.advice[b] & (REMOTE_FLAG | ACCESSED_BY) == 0:
            return page  # most often so: its block is not there at all
        end = min((b + 1) * PAGES, last)
        if not is_remote(d, p, b) and d.n_resident[b] != d.n_pages[b]:
            q = next_clear(d.resident[b], page - b * PAGES, end - b * PAGES) + b * PAGES
            if q < end:
                return q
        page = end
    return last


def scattered(number, n):
    """Where to begin and how far to go on, modulo ``n``, to meet each of ``n`` once and near ones far
    apart; another beginning for each batch ``number``."""
    step = max(n * np.int64(618) // np.int64(1000), np.int64(1))
    while True:
        a, b = n, step
        while b > 0:
            a, b = b, a % b
        if a == 1:
            return (number * np.int64(2654435761)) % n, step
        step += 1


def fetch(t: Tables, k: Kernels, wave, active, alone, counters):
    """Fill a batch from the first ``active`` touches that wait: SM by SM (touch by touch) a burst of
    missing pages, round and round, until the batch is full or nothing is missing. Returns how many
    blocks, numbered in `Scratch.block`, and how many entries, of which several may be of one page.

    In a group of `OVERTAKING` touches another one comes first in each batch. ``alone``: one entry.

    Where it is known how many entries are there when the handler looks (``Costs.look``), these come:
    the GPU's units take turns, each with a few pages, so that touches near one another stand far
    apart, and a page has several entries."""
    d, p, x, costs = t.driver, t.pages, t.scratch, t.time.costs
    look = costs.look > 0
    room, burst = np.int64(costs.batch), np.int64(k.burst[wave])
    start, step = np.int64(0), np.int64(1)
    if look:
        room = max(min(np.int64(costs.look), room) * 10 // ENTRY_TENTHS, np.int64(1))
        burst = min(burst, np.int64(LOOK_BURST))
        start, step = scattered(d.n[BATCH], np.int64(active))
    elif k.fetched[wave] > 0:
        room = min(room, np.int64(k.fetched[wave]))
    if alone:
        room = np.int64(1)
    number = d.n[BATCH]
    used, n, distinct = np.int64(0), 0, np.int64(0)
    for i in range(active):
        x.scan[i] = x.at[i]
    progress = True
    while used < room and progress:
        progress = False
        for j in range(active):
            if used >= room:
                break
            group = j // OVERTAKING * OVERTAKING
            if look:
                i = (start + j * step) % active
            elif group + OVERTAKING <= active:
                i = group + (j - group + number) % OVERTAKING
            else:
                i = group + (j - group + number) % (active - group)
            taken = 0
            end = k.last[x.touch[i]]
            q = x.scan[i]
            while q < end and taken < burst and used < room:
                b = q // PAGES
                if is_remote(d, p, b):
                    q = (b + 1) * PAGES
                    continue
                stop = min((b + 1) * PAGES, end)
                q = next_clear(d.resident[b], q - b * PAGES, stop - b * PAGES) + b * PAGES
                if q >= stop:
                    continue
                # All missing pages from here on that lie in one word of the bitmap.
                w, at = (q - b * PAGES) >> 6, q & 63
                present = d.resident[b, w] >> np.uint64(at)
                more = min(lowest(present), 64 - at, stop - q, burst - taken, room - used)
                pages = (ONES >> np.uint64(64 - more)) << np.uint64(at)
                if p.stamp[b] != number:
                    p.stamp[b] = number
                    p.slot[b] = n
                    x.block[n] = b
                    for i_word in range(PAGES // 64):
                        x.faulted[n, i_word] = 0
                    n += 1
                s = p.slot[b]
                distinct += popcount(pages & ~x.faulted[s, w])
                x.faulted[s, w] |= pages
                used += more
                taken += more
                q += more
            if taken:
                progress = True
            x.scan[i] = q
    # Sorted by address: blocks ascending (mostly they are), pages as bits.
    for i in range(n):
        key = x.block[i] << PLACE_BITS | i  # no two are equal
        j = i - 1
        while j >= 0 and x.order[j] > key:
            x.order[j + 1] = x.order[j]
            j -= 1
        x.order[j + 1] = key
    for i in range(n):
        x.order[i] &= (1 << PLACE_BITS) - 1
    counters[FAULTS] += distinct
    entries = used * ENTRY_TENTHS // 10 if look else used
    counters[ENTRIES] += entries
    return n, entries
