"""The expert cache of llama.cpp (``--moe-cache-mib``), as in llama-moe-cache.cpp at b11549.

- A layer's distinct experts are one event. Those that are cached become the most recently used, in
  order of first appearance; then the missing ones, in ascending id, each take the least recently used
  slot.
- A micro-batch of more than 32 tokens, or one that could need more experts than there are slots
  (tokens x top-k, at most the layer's experts), only reads the cache and changes nothing.

llama.cpp has one cache for all layers whose expert tensors have the same types and shapes: the global
pool, where that is so of all layers.
"""

from typing import NamedTuple

import numpy as np

from uvmsim.core.jit import kernel_part
from uvmsim.policies.base import EVENT, Eviction, pool_of
from uvmsim.policies.lists import Lists, end_of, new_lists, oldest_free, push_tail, to_tail, unlink

MAX_BATCH = 32
"""`max_batch` of llama-moe-cache.cpp."""


class State(NamedTuple):
    order: Lists  # least recently used first
    brought: np.ndarray  # int64 [experts]: event that inserted an expert
    top_k: np.ndarray  # int64 [1]


@kernel_part
def too_large(s, pool, ev):
    """Whether llama.cpp reads this micro-batch's experts past the cache."""
    p = pool_of(pool, ev.layer * pool.n_experts)
    most = min(ev.tokens * s.top_k[0], pool.n_experts)
    return ev.tokens > MAX_BATCH or most > pool.lo[p + 1] - pool.lo[p]


class LlamaCppLRU(Eviction):
    """llama.cpp's own expert cache: LRU by layer, passed by where a batch is large."""

    name = "llama-cpp-lru"
    source = "llama.cpp b11549, src/llama-moe-cache.cpp"

    def state(self, ctx):
        return State(new_lists(ctx), np.full(ctx.n_total, -1, np.int64), np.array([ctx.top_k]))

    @staticmethod
    def bypasses(s, pool, ev):
        return too_large(s, pool, ev)

    @staticmethod
    def on_event(s, pool, ev):
        if too_large(s, pool, ev):
            return
        for j in range(len(ev.experts)):
            e = ev.experts[j]
            if pool.slot_of[e] >= 0:
                to_tail(s.order, end_of(pool, 0, pool_of(pool, e)), e)

    @staticmethod
    def on_insert(s, pool, e, i):
        # Misses come in order of first appearance: put each before the larger ids of its event.
        end = end_of(pool, 0, pool_of(pool, e))
        at = end
        newer = s.order.prev[at]
        while newer != end and newer > e and s.brought[newer] == pool.clock[EVENT]:
            at = newer
            newer = s.order.prev[at]
        push_tail(s.order, at, e)
        s.brought[e] = pool.clock[EVENT]

    @staticmethod
    def on_evict(s, pool, e):
        unlink(s.order, e)

    @staticmethod
    def victim(s, pool, p):
        return oldest_free(s.order, pool, end_of(pool, 0, p))
