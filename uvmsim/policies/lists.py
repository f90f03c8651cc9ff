"""Doubly linked lists over expert ids, one list a pool, in two flat arrays.

The list of pool ``p`` has its sentinel at index ``n_total + p``; ``next[sentinel]`` is the head
(the oldest), ``prev[sentinel]`` the tail.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from uvmsim.policies.base import Context


inner = njit(nogil=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""For helpers called by hooks only: no wrapper for calls from Python is compiled."""


class Lists(NamedTuple):
    """Links of all lists: uint32 [n_total + pools] each (unsigned: an index that cannot be negative needs no check)."""

    prev: np.ndarray
    next: np.ndarray


def new_lists(ctx: Context) -> Lists:
    """Empty lists for every pool."""
    links = np.arange(ctx.n_total + len(ctx.capacity), dtype=np.uint32)
    return Lists(links, links.copy())


@inner
def push_tail(links, sentinel, e):
    """Make ``e`` the newest of the list."""
    last = links.prev[sentinel]
    links.next[last] = e
    links.prev[e] = last
    links.next[e] = sentinel
    links.prev[sentinel] = e


@inner
def unlink(links, e):
    """Take ``e`` out of its list."""
    p, n = links.prev[e], links.next[e]
    links.next[p] = n
    links.prev[n] = p


@inner
def oldest_free(links, pool, sentinel):
    """The oldest entry that is not in use by the current event; -1 if there is none."""
    e = links.next[sentinel]
    while e != sentinel and pool.pin[e] == pool.stamp[0]:
        e = links.next[e]
    return -1 if e == sentinel else e


@inner
def newest_free(links, pool, sentinel):
    """The newest entry that is not in use by the current event; -1 if there is none."""
    e = links.prev[sentinel]
    while e != sentinel and pool.pin[e] == pool.stamp[0]:
        e = links.prev[e]
    return -1 if e == sentinel else e
