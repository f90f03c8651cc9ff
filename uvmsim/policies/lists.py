"""Doubly linked lists over expert ids, one list a pool or a few kinds of list a pool, in two flat
arrays. An expert is in one of them, or in none.

The list of pool ``p`` has its sentinel at index ``n_total + p`` (list ``kind`` of several:
``n_total + kind * pools + p``, see `end_of`); ``next[sentinel]`` is the head (the oldest),
``prev[sentinel]`` the tail.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.core.jit import kernel_part as inner
from uvmsim.policies.base import Context, in_use


class Lists(NamedTuple):
    """Links of all lists: uint32 [n_total + kinds * pools] each. Unsigned, since an index that cannot
    be negative needs no check: LRU runs 1.4 times as fast."""

    prev: np.ndarray
    next: np.ndarray


def new_lists(ctx: Context, kinds: int = 1) -> Lists:
    """Empty lists, ``kinds`` of them for every pool."""
    links = np.arange(ctx.n_total + kinds * len(ctx.capacity), dtype=np.uint32)
    return Lists(links, links.copy())


@inner
def end_of(pool, kind, p):
    """Sentinel of list ``kind`` of pool ``p``."""
    return np.uint32(pool.layer_of.size + kind * pool.used.size + p)


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
def to_tail(links, sentinel, e):
    """Move ``e``, from whichever list it is in, to the newest place of this one."""
    if links.prev[sentinel] != e:
        unlink(links, e)
        push_tail(links, sentinel, e)


@inner
def oldest_free(links, pool, sentinel):
    """The oldest entry that is not in use by the current event; -1 if there is none."""
    e = links.next[sentinel]
    while e != sentinel and in_use(pool, e):
        e = links.next[e]
    return -1 if e == sentinel else e


@inner
def newest_free(links, pool, sentinel):
    """The newest entry that is not in use by the current event; -1 if there is none."""
    e = links.prev[sentinel]
    while e != sentinel and in_use(pool, e):
        e = links.prev[e]
    return -1 if e == sentinel else e
