"""Static pin: the experts a profile trace calls hottest stay for ever."""

from typing import Any, ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, in_use, pool_of
from uvmsim.policies.lists import Lists, new_lists, push_tail, unlink


class State(NamedTuple):
    """links: LRU order a pool; keep: uint8 [n_total], 1 = never evicted."""

    links: Lists
    keep: np.ndarray


class StaticPin(Eviction):
    """Keep the hottest experts of a profile trace; the rest share `scratch` slots by LRU."""

    name = "static-pin"
    source = "profile-pinned experts, as in llama.cpp forks (moe-trace + pin lists)"
    needs = frozenset({"profile"})
    reads = frozenset()
    scratch: int = 0
    """Slots a pool left for all other experts; 0 = top-k."""
    search: ClassVar[dict[str, Any]] = {"scratch": (1, 256, "log")}

    def state(self, ctx):
        keep = np.zeros(ctx.n_total, np.uint8)
        for p, capacity in enumerate(ctx.capacity):
            room = max(int(capacity) - (self.scratch or ctx.top_k), 0)
            mine = np.flatnonzero(ctx.pool_of == p)
            hottest = mine[np.argsort(-ctx.profile_counts[mine], kind="stable")]
            keep[hottest[:room]] = 1
        return State(new_lists(ctx), keep)

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            unlink(s.links, e)
            push_tail(s.links, pool.layer_of.size + pool_of(pool, e), e)

    @staticmethod
    def on_insert(s, pool, e, i):
        push_tail(s.links, pool.layer_of.size + pool_of(pool, e), e)

    @staticmethod
    def on_evict(s, pool, e):
        unlink(s.links, e)

    @staticmethod
    def victim(s, pool, p):
        end = pool.layer_of.size + p
        forced = -1
        e = s.links.next[end]
        while e != end:
            if not in_use(pool, e):
                if s.keep[e] == 0:
                    return e
                if forced < 0:
                    forced = e
            e = s.links.next[e]
        return forced  # an event wider than the scratch slots has to break a pin
