"""S3-FIFO in the two variants that libCacheSim has published under the one name."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, in_use, pool_of
from uvmsim.policies.lists import end_of
from uvmsim.policies.queues import Queues, drop, head, new_queues, put

SMALL, MAIN, GHOST = range(3)


class State(NamedTuple):
    """q: the queues; uses: uint8 [n_total], at most 3; room: int64 [3, pools]; back: uint8 [pools],
    the expert being fetched was a ghost; full: uint8 [pools], an eviction has happened."""

    q: Queues
    uses: np.ndarray
    room: np.ndarray
    back: np.ndarray
    full: np.ndarray


class S3FIFO(Eviction):
    """Small FIFO, main FIFO with reinsertion, ghosts; what small can't hold at first fills main."""

    name = "s3fifo"
    source = (
        "Yang, Zhang, Qiu, Yue and Vigfusson 2023 (SOSP); promotes at 2 uses, as libCacheSim 0.3.5"
    )
    reads = frozenset()

    def state(self, ctx):
        small, ghost = ((ctx.capacity * share).astype(np.int64) for share in (0.1, 0.9))
        room = np.stack([small, ctx.capacity - small, ghost])
        none = np.zeros(len(ctx.capacity), np.uint8)
        return State(new_queues(ctx, 3), np.zeros(ctx.n_total, np.uint8), room, none, none.copy())

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if hit:
            if s.uses[e] < 3:
                s.uses[e] += 1
        elif s.q.where[e] == GHOST:
            s.back[pool_of(pool, e)] = 1
            drop(s.q, pool, e)

    @staticmethod
    def on_insert(s, pool, e, i):
        p = pool_of(pool, e)
        spare = s.full[p] == 0 and s.q.size[SMALL, p] >= s.room[SMALL, p]
        put(s.q, pool, MAIN if s.back[p] == 1 or spare else SMALL, e)
        s.back[p] = 0
        s.uses[e] = 0

    @staticmethod
    def on_evict(s, pool, e):
        p = pool_of(pool, e)
        s.full[p] = 1
        if s.q.where[e] == MAIN:
            drop(s.q, pool, e)
            return
        put(s.q, pool, GHOST, e)
        if s.q.size[GHOST, p] > s.room[GHOST, p]:
            drop(s.q, pool, head(s.q, pool, GHOST, p))

    @staticmethod
    def victim(s, pool, p):
        first = 0 if s.q.size[MAIN, p] > s.room[MAIN, p] or s.q.size[SMALL, p] == 0 else 1
        for attempt in range(first, 3):
            small = attempt == 1
            end = end_of(pool, SMALL if small else MAIN, p)
            e = s.q.links.next[end]
            while e != end:
                after = s.q.links.next[e]
                if not in_use(pool, e):
                    if s.uses[e] < (2 if small else 1):
                        return np.int64(e)
                    s.uses[e] = 0 if small else s.uses[e] - 1
                    put(s.q, pool, MAIN, e)
                    if not small and after == end:
                        after = e
                e = after
        return np.int64(-1)


class S3FIFO2024(S3FIFO):
    """The older S3-FIFO: every newcomer enters the small queue, also while the pool fills."""

    name = "s3fifo-2024"
    source = "Yang, Zhang, Qiu, Yue and Vigfusson 2023 (SOSP); as libCacheSim before October 2024"
    reads = frozenset()

    def state(self, ctx):
        s = super().state(ctx)
        s.full[:] = 1
        return s
