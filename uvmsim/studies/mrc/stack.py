"""LRU stack distances in one pass: one number an access says what every capacity would do.

Mattson, Gecsei, Slutz and Traiger 1970: LRU's pool of C slots holds the C most recently used, so an
access hits exactly where fewer than C others were used since its last use. It holds for event-atomic
replay too, as long as an event fits the pool: distances are then taken against the order before
the event, and all of the event's experts move to the front after it.
"""

from __future__ import annotations

import numpy as np

from traces.jit import compiled
from uvmsim.core.jit import inner


@inner
def _ones(x):
    """Set bits of a uint64 (Warren, Hacker's Delight, 5-1)."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled(nogil=True)
def stack_histogram(ids, event_lo, n_total, count_from=0):
    """Histogram of LRU stack distances.

    ``ids`` integer [A], below ``n_total``; ``event_lo`` int64 [E + 1]. Returns int64 [n_total]
    (``hist[d]`` accesses with d others since the last use) and the number of first uses:
    misses(C) = first + hist[C:].sum(), for every C that holds the widest event. Accesses of events
    before number ``count_from`` warm the order up and are not counted.

    Each use takes the next of a row of marks; a use's distance is the number of marks set after its
    last one. Marks are bits of words; set bits are counted by word and by block of words, so that a
    use changes four counters, and a distance is two short sums the compiler vectorises (as fast as
    a Fenwick tree over the words, and simpler). When the row is full, the set marks close ranks.
    """
    words = 2
    while words * 64 < 4 * n_total:
        words *= 2
    shift = 1
    while (1 << (2 * shift)) < words:
        shift += 1
    bits = np.zeros(words, np.uint64)
    by_word = np.zeros(words, np.int32)
    by_block = np.zeros((words >> shift) + 1, np.int32)
    mark = np.full(n_total, -1, np.int64)
    owner = np.empty(words * 64, np.int32)
    hist = np.zeros(n_total, np.int64)
    first = 0
    t = 0
    one = np.uint64(1)
    for i in range(len(event_lo) - 1):
        lo, hi = event_lo[i], event_lo[i + 1]
        if t + (hi - lo) > words * 64:
            k = 0
            for j in range(t):
                if mark[owner[j]] == j:
                    owner[k] = owner[j]
                    mark[owner[k]] = k
                    k += 1
            bits[:] = 0
            by_word[:] = 0
            by_block[:] = 0
            for j in range(k):
                w = j >> 6
                bits[w] |= one << np.uint64(j & 63)
                by_word[w] += 1
                by_block[w >> shift] += 1
            t = k
        top = t >> 6
        for a in range(lo, hi):
            m = mark[ids[a]]
            if i < count_from:
                continue
            if m < 0:
                first += 1
                continue
            w = m >> 6
            block = w >> shift
            later = _ones(bits[w] >> np.uint64(m & 63)) - 1
            for j in range(w + 1, min((block + 1) << shift, top + 1)):
                later += by_word[j]
            for j in range(block + 1, (top >> shift) + 1):
                later += by_block[j]
            hist[later] += 1
        for a in range(lo, hi):
            e = ids[a]
            m = mark[e]
            if m >= 0:
                w = m >> 6
                bits[w] &= ~(one << np.uint64(m & 63))
                by_word[w] -= 1
                by_block[w >> shift] -= 1
            mark[e] = t
            owner[t] = e
            w = t >> 6
            bits[w] |= one << np.uint64(t & 63)
            by_word[w] += 1
            by_block[w >> shift] += 1
            t += 1
    return hist, first
