"""Policies that know a forward pass walks the layers in order."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import LAYER, STEP, Eviction, in_use


class State(NamedTuple):
    """turn: int64 [layers], turns a layer had; used: int64 [n_total], turn (or forward pass) of the
    last use, -1 if none; stamp: int64 [n_total], order of the last use; tick: int64 [1]."""

    turn: np.ndarray
    used: np.ndarray
    stamp: np.ndarray
    tick: np.ndarray


class LayerLRU(Eviction):
    """Evict who missed most turns of its own layer; of equals, whose layer comes last."""

    name = "layer-lru"
    source = "after Angelopoulos et al. 2025 (arXiv 2509.02408), layered paging; our reading"

    def state(self, ctx):
        n = ctx.n_total
        return State(
            np.zeros(ctx.n_layers, np.int64), np.full(n, -1, np.int64), np.zeros(n, np.int64),
            np.zeros(1, np.int64),
        )  # fmt: skip

    @staticmethod
    def on_event(s, pool, ev):
        s.turn[ev.layer] += 1

    @staticmethod
    def on_access(s, pool, e, i, hit):
        s.tick[0] += 1
        s.stamp[e] = s.tick[0]
        s.used[e] = s.turn[pool.layer_of[e]]

    @staticmethod
    def on_insert(s, pool, e, i):
        # A prefetched expert is as fresh as if its layer had just used it.
        s.used[e] = s.turn[pool.layer_of[e]]

    @staticmethod
    def victim(s, pool, p):
        best, best_age, best_wait = -1, np.int64(0), np.int64(0)
        here = pool.clock[LAYER]
        for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
            e = pool.expert_in[slot]
            if in_use(pool, e):
                continue
            layer = pool.layer_of[e]
            age = s.turn[layer] - s.used[e]
            wait = (layer - here - 1) % pool.n_layers
            if (
                best < 0
                or age > best_age
                or (age == best_age and wait > best_wait)
                or (age == best_age and wait == best_wait and s.stamp[e] < s.stamp[best])
            ):
                best, best_age, best_wait = e, age, wait
        return best


class LeastStale(LayerLRU):
    """Evict first who was passed over in this forward pass, then who had its turn, then the rest."""

    name = "least-stale"
    source = "after SpecMD (arXiv 2602.03921); its code is not public, this is our reading"

    @staticmethod
    def on_access(s, pool, e, i, hit):
        s.tick[0] += 1
        s.stamp[e] = s.tick[0]
        s.used[e] = pool.clock[STEP]

    @staticmethod
    def on_insert(s, pool, e, i):
        s.tick[0] += 1
        s.stamp[e] = s.tick[0]

    @staticmethod
    def victim(s, pool, p):
        best, best_class = -1, 3
        for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
            e = pool.expert_in[slot]
            if in_use(pool, e):
                continue
            if pool.layer_of[e] > pool.clock[LAYER]:
                kind = 2  # its turn is still to come
            elif s.used[e] == pool.clock[STEP]:
                kind = 1  # used in this pass; not needed before the next
            else:
                kind = 0  # stale: its layer passed without it
            if kind < best_class or (kind == best_class and s.stamp[e] < s.stamp[best]):
                best, best_class = e, kind
        return best
