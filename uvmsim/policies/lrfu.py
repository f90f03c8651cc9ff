"""LRFU: between LRU and LFU by one number, the half-life of a use."""

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np

from traces.errors import InputError
from uvmsim.policies.base import LAYER, Eviction, in_use
from uvmsim.policies.layer_heaps import (
    LayerHeaps,
    layer_add,
    layer_first,
    layer_least,
    layer_remove,
    layer_set,
    new_layer_heaps,
)
from uvmsim.policies.lists import inner


class State(NamedTuple):
    """heaps: by log2 of an expert's count, had it not faded since the run began; counts: float64
    [n_total], decayed uses as of turn `at`; at: int64 [n_total], token of its layer that used it last;
    turn: int64 [layers], tokens a layer has served; fade: float64, by tokens passed; pace: float64
    [1], halvings a token; wait: float64 [2 layers], layers to go as a share of all, once over and
    again."""

    heaps: LayerHeaps
    counts: np.ndarray
    at: np.ndarray
    turn: np.ndarray
    fade: np.ndarray
    pace: np.ndarray
    wait: np.ndarray


class LRFU(Eviction):
    """Evict the least count of uses, each fading by half in `half_life` tokens of its layer."""

    name = "lrfu"
    source = (
        "Lee, Choi, Kim, Noh, Min, Cho and Kim 2001 (IEEE Trans. Computers 50), lambda = 1 / "
        "half_life; our reading for layers: counts as of the layer's next turn"
    )
    reads = frozenset({"clock"})
    half_life: float = 12.0
    """Tokens (a plain sequence of ids: accesses) in which a use loses half its weight."""
    search: ClassVar[dict[str, Any]] = {"half_life": (1, 256, "log")}

    def state(self, ctx):
        if not 0 < self.half_life < math.inf:
            raise InputError(f"policy lrfu: half_life={self.half_life:g} must be above 0 tokens")
        n = ctx.n_total
        heaps = new_layer_heaps(ctx)
        heaps.key[:] = -np.inf  # prefetched and never used
        # Past 60 halvings a count of one adds nothing to another.
        fade = 0.5 ** (np.arange(int(min(60 * self.half_life, 1 << 20)) + 2) / self.half_life)
        return State(
            heaps, np.zeros(n), np.zeros(n, np.int64),
            np.zeros(ctx.n_layers, np.int64), fade, np.array([1 / self.half_life]),
            np.arange(2 * ctx.n_layers) % ctx.n_layers / ctx.n_layers,
        )  # fmt: skip

    @staticmethod
    def on_event(s, pool, ev):
        first = ev.layer * pool.n_experts
        turn = s.turn[ev.layer]
        for r in range(ev.chosen.shape[0]):
            turn += 1
            for k in range(ev.chosen.shape[1]):
                if ev.chosen[r, k] < 0:
                    continue
                e = first + ev.chosen[r, k]
                past = turn - s.at[e]
                faded = s.counts[e] * s.fade[past] if past < s.fade.size else 0.0
                s.counts[e] = faded + 1.0
                s.at[e] = turn
                # The order of faded counts is that of these keys at any later time.
                layer_set(s.heaps, pool, e, math.log2(s.counts[e]) + turn * s.pace[0])
        s.turn[ev.layer] = turn

    @staticmethod
    def on_insert(s, pool, e, i):
        layer_add(s.heaps, pool, e)

    @staticmethod
    def on_evict(s, pool, e):
        layer_remove(s.heaps, pool, e)

    @staticmethod
    def victim(s, pool, p):
        h, here, n = s.heaps, pool.clock[LAYER], pool.n_layers
        if pool.used.size > 1:
            return layer_least(h, pool, p)
        # What is left of the counts at the layers' next turns.
        mine, shift = layer_least(h, pool, here), n - 1 - here
        own = math.inf
        if mine >= 0:
            own = h.key[mine] - (s.turn[here] + s.wait[shift + here]) * s.pace[0]
        best, least = here, own
        for layer in range(n):
            left = own
            if layer != here:
                left = h.top[layer] - (s.turn[layer] + s.wait[shift + layer]) * s.pace[0]
            if left < least or (left == least and layer < best):
                best, least = np.int64(layer), left
        if best == here or least == math.inf:
            return mine
        e = layer_first(h, pool, best)
        return e if not in_use(pool, e) else _free_victim(s, pool, here)


@inner
def _free_victim(s, pool, here):
    """The victim where other layers have experts in use: just prefetched, or asked for."""
    best, least = np.int32(-1), math.inf
    for layer in range(pool.n_layers):
        e = layer_least(s.heaps, pool, layer)
        if e >= 0:
            wait = s.wait[pool.n_layers - 1 - here + layer]
            left = s.heaps.key[e] - (s.turn[layer] + wait) * s.pace[0]
            if left < least:
                best, least = e, left
    return best
