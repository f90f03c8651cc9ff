"""Belady's MIN: a bound, not a policy one can ship."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import NEVER, Eviction, in_use, pool_of
from uvmsim.policies.bitset import BitSet, clear_bit, highest, new_bitset, set_bit
from uvmsim.policies.lists import inner


class State(NamedTuple):
    """Residents are kept as the set of places of their next uses. Places are the accesses to pool 0,
    then one for each expert (for who is never used again), then those of pool 1 and so on.

    upcoming: int64 [accesses], place of the next use, NEVER if none; here: int64 [accesses], place of
    an access, or empty where that is its number; owner: int32 [accesses], expert of a place of the
    first sort; lo: int64 [pools + 1], first place of a pool; ahead: int64 [n_total], next use of
    each expert, or empty where nothing is prefetched; last: int64 [2], access of the last
    `on_access` and place of the last victim.
    """

    resident: BitSet
    upcoming: np.ndarray
    here: np.ndarray
    owner: np.ndarray
    lo: np.ndarray
    ahead: np.ndarray
    last: np.ndarray


def _places(ctx):
    """``upcoming``, ``here``, ``owner``, ``lo``, ``ahead`` from the context."""
    n = len(ctx.future_ids)
    none = np.zeros(0, np.int64)
    if len(ctx.capacity) == 1:
        lo = np.array([0, n + ctx.n_total], np.int64)
        return ctx.next_use, none, ctx.future_ids, lo, ctx.first_use.copy()
    pool = ctx.pool_of[ctx.future_ids]
    order = np.argsort(pool, kind="stable")
    here = np.empty(n + 1, np.int64)
    here[order] = np.arange(n) + ctx.n_total * pool[order].astype(np.int64)
    here[n] = NEVER
    # What lies outside the run's segment was never written: any place will do.
    upcoming, ahead = (
        here[np.where((x >= 0) & (x < n), x, n)] for x in (ctx.next_use, ctx.first_use)
    )
    used = np.bincount(pool, minlength=len(ctx.capacity))
    lo = np.concatenate(([0], np.cumsum(used + ctx.n_total))).astype(np.int64)
    return upcoming, here, ctx.future_ids[order], lo, ahead


@inner
def _place(s, pool, e, nxt):
    """Place of resident ``e`` whose next use is ``nxt``."""
    if nxt != NEVER:
        return nxt
    return s.lo[pool_of(pool, e) + 1] - 1 - np.int64(e)


class Belady(Eviction):
    """The bound: evict who is needed again last. A miss always inserts (no bypass)."""

    name = "belady"
    source = "Belady 1966 (MIN); of those never used again, the lowest id"
    needs = frozenset({"next_use"})
    reads = frozenset()

    def state(self, ctx):
        upcoming, here, owner, lo, ahead = _places(ctx)
        if not ctx.prefetches:
            ahead = ahead[:0]
        last = np.full(2, -1, np.int64)
        return State(new_bitset(int(lo[-1])), upcoming, here, owner, lo, ahead, last)

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            clear_bit(s.resident, np.int64(i) if len(s.here) == 0 else s.here[i])
            set_bit(s.resident, _place(s, pool, e, s.upcoming[i]))
        s.last[0] = i if not hit else -1
        if len(s.ahead) > 0:
            s.ahead[e] = s.upcoming[i]

    @staticmethod
    def on_insert(s, pool, e, i):
        nxt = s.upcoming[i] if s.last[0] == i else s.ahead[e]
        s.last[0] = -1
        set_bit(s.resident, _place(s, pool, e, nxt))

    @staticmethod
    def on_evict(s, pool, e):
        clear_bit(s.resident, s.last[1])

    @staticmethod
    def victim(s, pool, p):
        x = highest(s.resident, s.lo[p + 1] - 1)
        n = pool.layer_of.size
        while x >= s.lo[p]:
            last = s.lo[p + 1] - 1
            e = last - x if last - x < n else np.int64(s.owner[np.uint64(x - p * n)])
            if not in_use(pool, e):
                s.last[1] = x
                return e
            x = highest(s.resident, x - 1)
        return np.int64(-1)
