"""W-TinyLFU: a small LRU window in front of an SLRU; who was used more often lately is admitted."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, pool_of
from uvmsim.policies.lists import inner
from uvmsim.policies.queues import Queues, drop, first_free, head, new_queues, put

WINDOW, PROBATION, PROTECTED = range(3)


class State(NamedTuple):
    """q: the queues; room: int64 [3, pools]; uses: uint8 [n_total], at most 15, as of `period`;
    period: int64 [n_total]; now and sample: int64 [pools], halvings so far, uses since."""

    q: Queues
    room: np.ndarray
    uses: np.ndarray
    period: np.ndarray
    now: np.ndarray
    sample: np.ndarray


@inner
def _uses(s, pool, e):
    """Uses of ``e``, halved once for every period that ended since they were counted."""
    return np.int64(s.uses[e]) >> min(s.now[pool_of(pool, e)] - s.period[e], 8)


class WTinyLFU(Eviction):
    """Evict the window's oldest or the main part's, whichever was used less; ties: the window's."""

    name = "w-tinylfu"
    source = (
        "Einziger, Friedman and Manes 2017 (ACM TOS); window 1 %, protected 80 % of the rest; exact "
        "4-bit counts (ids are dense) in place of the count-min sketch, halved every 10 c uses"
    )
    reads = frozenset()

    def state(self, ctx):
        n, c = ctx.n_total, ctx.capacity
        window = np.maximum(c // 100, 1)
        protected = (c - window) * 4 // 5
        room = np.stack([window, c - window - protected, protected])
        zeros = np.zeros(len(c), np.int64)
        return State(
            new_queues(ctx, 3), room, np.zeros(n, np.uint8), np.zeros(n, np.int64), zeros,
            zeros.copy(),
        )  # fmt: skip

    @staticmethod
    def on_access(s, pool, e, i, hit):
        p = pool_of(pool, e)
        s.uses[e] = min(_uses(s, pool, e) + 1, 15)
        s.period[e] = s.now[p]
        s.sample[p] += 1
        if s.sample[p] >= 10 * s.room[:, p].sum():
            s.sample[p] //= 2
            s.now[p] += 1
        if not hit:
            return
        put(s.q, pool, WINDOW if s.q.where[e] == WINDOW else PROTECTED, e)
        if s.q.size[PROTECTED, p] > s.room[PROTECTED, p]:
            put(s.q, pool, PROBATION, head(s.q, pool, PROTECTED, p))

    @staticmethod
    def on_insert(s, pool, e, i):
        p = pool_of(pool, e)
        put(s.q, pool, WINDOW, e)
        if s.q.size[WINDOW, p] > s.room[WINDOW, p]:
            put(s.q, pool, PROBATION, head(s.q, pool, WINDOW, p))

    @staticmethod
    def on_evict(s, pool, e):
        drop(s.q, pool, e)

    @staticmethod
    def victim(s, pool, p):
        new = first_free(s.q, pool, WINDOW, p)
        old = first_free(s.q, pool, PROBATION, p)
        if old < 0:
            old = first_free(s.q, pool, PROTECTED, p)
        if new < 0 or (old >= 0 and s.q.size[WINDOW, p] < s.room[WINDOW, p]):
            return old
        return new if old < 0 or _uses(s, pool, new) <= _uses(s, pool, old) else old
