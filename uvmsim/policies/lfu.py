"""LFU: experts of equal use count form a class; the classes are in order, so nothing is searched."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, pool_of
from uvmsim.policies.lists import Lists, inner, oldest_free, push_tail, unlink


class State(NamedTuple):
    """links: the experts of a class, sentinel n_total + class; order: the classes of a pool by
    count, sentinel classes + pool; class_of: uint32 [n_total]; uses: int64 [classes]; spare:
    uint32 [classes], stack of unused classes; n_spare: int64 [1]."""

    links: Lists
    order: Lists
    class_of: np.ndarray
    uses: np.ndarray
    spare: np.ndarray
    n_spare: np.ndarray


@inner
def _enter(s, n, before, uses, e):
    """Put ``e`` into the class of ``uses``, which follows class ``before``; made if need be."""
    c = s.order.next[before]
    if c >= len(s.uses) or s.uses[c] != uses:
        s.n_spare[0] -= 1
        new = s.spare[s.n_spare[0]]
        push_tail(s.order, c, new)  # just before c
        s.uses[new] = uses
        c = new
    s.class_of[e] = c
    push_tail(s.links, np.uint32(n + c), e)


@inner
def _close(s, n, c):
    """Take class ``c`` out of the order if it is empty."""
    if s.links.next[n + c] == n + c:
        unlink(s.order, c)
        s.spare[s.n_spare[0]] = c
        s.n_spare[0] += 1


class LFU(Eviction):
    """Evict the least used since it was loaded; of equals, the one that reached its count first."""

    name = "lfu"
    source = "in-cache LFU with libCacheSim's tie rule; classes as Shah, Mitra and Matani 2010"
    reads = frozenset()

    def state(self, ctx):
        n, classes = ctx.n_total, int(ctx.capacity.sum()) + 1
        links = np.arange(n + classes, dtype=np.uint32)
        order = np.arange(classes + len(ctx.capacity), dtype=np.uint32)
        return State(
            Lists(links, links.copy()), Lists(order, order.copy()), np.zeros(n, np.uint32),
            np.zeros(classes, np.int64), order[:classes].copy(), np.array([classes]),
        )  # fmt: skip

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if not hit:
            return
        n, c = pool.layer_of.size, s.class_of[e]
        uses = s.uses[c] + 1
        after = s.order.next[c]
        if s.links.next[e] == s.links.prev[e] and (after >= len(s.uses) or s.uses[after] != uses):
            s.uses[c] = uses  # alone in its class: the class moves on
            return
        unlink(s.links, e)
        _enter(s, n, c, uses, e)
        _close(s, n, c)

    @staticmethod
    def on_insert(s, pool, e, i):
        _enter(s, pool.layer_of.size, np.uint32(len(s.uses) + pool_of(pool, e)), 1, e)

    @staticmethod
    def on_evict(s, pool, e):
        unlink(s.links, e)
        _close(s, pool.layer_of.size, s.class_of[e])

    @staticmethod
    def victim(s, pool, p):
        c = s.order.next[len(s.uses) + p]
        while c < len(s.uses):
            e = oldest_free(s.links, pool, np.uint32(pool.layer_of.size + c))
            if e >= 0:
                return e
            c = s.order.next[c]
        return -1
