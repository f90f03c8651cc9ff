"""LRFU: between LRU and LFU by one number, the half-life of a use."""

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np

from traces.errors import InputError
from uvmsim.policies.base import LAYER, Eviction
from uvmsim.policies.layer_heaps import (
    LayerHeaps,
    layer_add,
    layer_least,
    layer_remove,
    layer_set,
    new_layer_heaps,
)


class State(NamedTuple):
    """heaps: by log2 of an expert's count, had it not faded since the run began; counts: float64
    [n_total], decayed uses as of turn `at`; at: int64 [n_total], token of its layer that used it last;
    turn: int64 [layers], tokens a layer has served; fade: float64, by tokens passed; pace: float64
    [1], halvings a token."""

    heaps: LayerHeaps
    counts: np.ndarray
    at: np.ndarray
    turn: np.ndarray
    fade: np.ndarray
    pace: np.ndarray


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
        one = pool.used.size > 1
        best, least = np.int32(-1), 0.0
        for layer in range(p if one else 0, p + 1 if one else pool.n_layers):
            e = layer_least(s.heaps, pool, layer)
            if e < 0:
                continue
            # What is left of the count at the layer's next turn.
            wait = (layer - pool.clock[LAYER] - 1) % pool.n_layers / pool.n_layers
            left = s.heaps.key[e] - (s.turn[layer] + wait) * s.pace[0]
            if best < 0 or left < least:
                best, least = e, left
        return best
