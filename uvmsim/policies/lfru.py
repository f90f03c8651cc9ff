"""LFRU: an LRU part for the popular, an LFU part for those that must prove themselves."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, pool_of
from uvmsim.policies.heaps import Heaps, heap_least_free, heap_remove, heap_set, new_heaps
from uvmsim.policies.lists import inner
from uvmsim.policies.queues import NOWHERE, Queues, drop, first_free, head, new_queues, put


class State(NamedTuple):
    """q: the privileged part, an LRU list a pool; rest: the unprivileged part by uses and age; uses:
    int64 [n_total], since loaded; room: int64 [pools], of the privileged part; tick: int64 [1]."""

    q: Queues
    rest: Heaps
    uses: np.ndarray
    room: np.ndarray
    tick: np.ndarray


@inner
def _push_out(s, pool, p):
    """The oldest of an overfull privileged part moves to the other."""
    if s.q.size[0, p] > s.room[p]:
        e = head(s.q, pool, 0, p)
        drop(s.q, pool, e)
        s.tick[0] += 1
        heap_set(s.rest, pool, p, e, (s.uses[e] << 40) + s.tick[0])


class LFRU(Eviction):
    """New and used experts enter an LRU part; what it pushes out is evicted least used first."""

    name = "lfru"
    source = (
        "Bilal and Kang 2017 (IEEE Access 5), our reading: half the pool privileged, one unprivileged "
        "part, exact counts since loading; of equals, who was pushed out first"
    )
    reads = frozenset()

    def state(self, ctx):
        return State(
            new_queues(ctx, 1), new_heaps(ctx), np.zeros(ctx.n_total, np.int64),
            (ctx.capacity + 1) // 2, np.zeros(1, np.int64),
        )  # fmt: skip

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            p = pool_of(pool, e)
            s.uses[e] += 1
            if s.q.where[e] == NOWHERE:
                heap_remove(s.rest, pool, p, e)
            put(s.q, pool, 0, e)
            _push_out(s, pool, p)

    @staticmethod
    def on_insert(s, pool, e, i):
        s.uses[e] = 1
        put(s.q, pool, 0, e)
        _push_out(s, pool, pool_of(pool, e))

    @staticmethod
    def on_evict(s, pool, e):
        if s.q.where[e] == NOWHERE:
            heap_remove(s.rest, pool, pool_of(pool, e), e)
        drop(s.q, pool, e)

    @staticmethod
    def victim(s, pool, p):
        e = heap_least_free(s.rest, pool, p)
        return e if e >= 0 else first_free(s.q, pool, 0, p)
