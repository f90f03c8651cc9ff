"""The kernel's page cache above a mapped file of experts: LRU by pages of 4 KiB, counted exactly.

An access touches all pages of an expert in order, so who is resident is known from one number an
expert: of its pages, in order, the first ones leave first, and what is left is an end of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from traces.jit import compiled


class Pages(NamedTuple):
    """The cache. Experts with resident pages are in a list, the one touched last at the end."""

    present: np.ndarray
    """int64 [experts]: resident pages."""
    next: np.ndarray
    """int64 [experts + 1]: the list; the last entry is its head."""
    prev: np.ndarray
    n: np.ndarray
    """int64 [2]: pages there are, pages in use."""


def new_pages(n_experts: int, pages: int) -> Pages:
    """An empty cache of so many pages."""
    link = np.full(n_experts + 1, n_experts, np.int64)
    return Pages(np.zeros(n_experts, np.int64), link, link.copy(), np.array([pages, 0], np.int64))


@compiled(nogil=True)
def touch(ids, size, c, missing):
    """Touch all pages of each of ``ids``; ``size`` int64 [experts]: how many they are, none more than
    the cache has. ``missing`` int64 [accesses] gets how many were read.

    Where an expert is itself the oldest, each page that is read pushes out the page it would have
    touched soonest after those: then nothing of it is found.
    """
    head = len(c.present)
    for j in range(len(ids)):
        e = ids[j]
        there = c.present[e]
        wants = size[e] - there
        room = c.n[0] - c.n[1]
        x = c.next[head]
        while room < wants and x != head and x != e:
            room += c.present[x]
            x = c.next[x]
        if room < wants and there > 0:
            wants = size[e]
            c.n[1] -= there
            there = 0
        missing[j] = wants
        if c.present[e] > 0:
            c.next[c.prev[e]] = c.next[e]
            c.prev[c.next[e]] = c.prev[e]
        c.present[e] = 0
        out = c.n[1] + wants - c.n[0]
        while out > 0:
            x = c.next[head]
            gone = min(out, c.present[x])
            c.present[x] -= gone
            c.n[1] -= gone
            out -= gone
            if c.present[x] == 0:
                c.next[head] = c.next[x]
                c.prev[c.next[x]] = head
        c.present[e] = size[e]
        c.n[1] += wants
        c.prev[e] = c.prev[head]
        c.next[e] = head
        c.next[c.prev[head]] = e
        c.prev[head] = e
