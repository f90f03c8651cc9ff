"""LRU and MRU, over one linked list a pool."""

from uvmsim.policies.base import Eviction, pool_of
from uvmsim.policies.lists import (
    end_of,
    new_lists,
    newest_free,
    oldest_free,
    push_tail,
    to_tail,
    unlink,
)


class LRU(Eviction):
    """Evict the expert whose last use is longest ago."""

    name = "lru"
    source = "Mattson, Gecsei, Slutz and Traiger 1970"
    reads = frozenset()

    def state(self, ctx):
        return new_lists(ctx)

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            to_tail(s, end_of(pool, 0, pool_of(pool, e)), e)

    @staticmethod
    def on_insert(s, pool, e, i):
        push_tail(s, end_of(pool, 0, pool_of(pool, e)), e)

    @staticmethod
    def on_evict(s, pool, e):
        unlink(s, e)

    @staticmethod
    def victim(s, pool, p):
        return oldest_free(s, pool, end_of(pool, 0, p))


class MRU(LRU):
    """Evict the expert used last: right for cyclic scans larger than the pool."""

    name = "mru"
    source = "Chou and DeWitt 1985"
    reads = frozenset()

    @staticmethod
    def victim(s, pool, p):
        return newest_free(s, pool, end_of(pool, 0, p))
