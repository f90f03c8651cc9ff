"""LIRS: keeps those whose last two uses were close together (low inter-reference recency)."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, in_use, pool_of
from uvmsim.policies.lists import Lists, end_of, inner, new_lists, push_tail, to_tail, unlink
from uvmsim.policies.queues import Queues, drop, first_free, head, new_queues, put

HIR, GHOST, LIR = range(3)


class State(NamedTuple):
    """q: resident HIR experts (the paper's list Q), ghosts in order of eviction, LIR ones; stack:
    links of the paper's S; stacked: uint8 [n_total], in S; depth: int64 [pools], size of S; room:
    int64 [3, pools]; asked: int64 [pools], the missing expert that was asked for."""

    q: Queues
    stack: Lists
    stacked: np.ndarray
    depth: np.ndarray
    room: np.ndarray
    asked: np.ndarray


@inner
def _leave(s, pool, e):
    if s.stacked[e]:
        unlink(s.stack, e)
        s.stacked[e] = 0
        s.depth[pool_of(pool, e)] -= 1
        if s.q.where[e] == GHOST:
            drop(s.q, pool, e)


@inner
def _touch(s, pool, e):
    """To the top of S; then: at most so many LIR, the bottom of S a LIR, S not too deep."""
    p = pool_of(pool, e)
    end = end_of(pool, 0, p)
    if s.stacked[e]:
        to_tail(s.stack, end, e)
    else:
        push_tail(s.stack, end, e)
        s.stacked[e] = 1
        s.depth[p] += 1
    _prune(s, pool, p)
    if s.q.size[LIR, p] > s.room[LIR, p]:
        bottom = s.stack.next[end]
        put(s.q, pool, HIR, bottom)
        _leave(s, pool, bottom)
        _prune(s, pool, p)
    while s.depth[p] > 2 * s.room[HIR, p] + 2 * s.room[LIR, p] and s.q.size[GHOST, p] > 0:
        _leave(s, pool, head(s.q, pool, GHOST, p))


@inner
def _prune(s, pool, p):
    end = end_of(pool, 0, p)
    while s.stack.next[end] != end and s.q.where[s.stack.next[end]] != LIR:
        _leave(s, pool, s.stack.next[end])


class LIRS(Eviction):
    """Evict the oldest resident HIR expert; one that returns while in the stack becomes LIR."""

    name = "lirs"
    source = "Jiang and Zhang 2002 (SIGMETRICS); 1 % for HIR, stack at most 2 c deep"
    reads = frozenset()

    def state(self, ctx):
        hir = np.maximum(ctx.capacity // 100, 1)
        room = np.stack([hir, ctx.capacity, ctx.capacity - hir])
        zeros = np.zeros(len(hir), np.int64)
        return State(new_queues(ctx, 3), new_lists(ctx), np.zeros(ctx.n_total, np.uint8), zeros, room,
                     zeros - 1)  # fmt: skip

    @staticmethod
    def on_access(s, pool, e, i, hit):
        if not hit:
            s.asked[pool_of(pool, e)] = e
            return
        if s.q.where[e] == HIR:
            put(s.q, pool, LIR if s.stacked[e] else HIR, e)
        _touch(s, pool, e)

    @staticmethod
    def on_insert(s, pool, e, i):
        p = pool_of(pool, e)
        if s.asked[p] != e:  # prefetched: not used yet
            put(s.q, pool, HIR, e)
            return
        s.asked[p] = -1
        low = s.stacked[e] or s.q.size[LIR, p] < s.room[LIR, p]
        put(s.q, pool, LIR if low else HIR, e)
        _touch(s, pool, e)

    @staticmethod
    def on_evict(s, pool, e):
        if s.q.where[e] == HIR and s.stacked[e]:
            put(s.q, pool, GHOST, e)
        else:
            drop(s.q, pool, e)
            _leave(s, pool, e)
            _prune(s, pool, pool_of(pool, e))

    @staticmethod
    def victim(s, pool, p):
        e = first_free(s.q, pool, HIR, p)
        if e < 0:  # all of them in use: the LIR expert used longest ago
            e = np.int64(-1)
            x = s.stack.next[end_of(pool, 0, p)]
            while x != end_of(pool, 0, p):
                if s.q.where[x] == LIR and not in_use(pool, x):
                    return np.int64(x)
                x = s.stack.next[x]
        return e
