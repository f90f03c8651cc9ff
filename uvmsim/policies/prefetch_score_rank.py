"""Prefetch by router scores: the runners-up of the last token are the next token's candidates."""

from typing import Any, ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.base import Prefetch


class State(NamedTuple):
    """scores: float64 [layers, experts], summed over the last micro-batch; order: float64
    [experts], scratch; n: int64 [1]."""

    scores: np.ndarray
    order: np.ndarray
    n: np.ndarray


class ScoreRank(Prefetch):
    """Next layer's best-scored experts of the previous token, runners-up included."""

    name = "score-rank"
    source = "router-score ranking, as HybriMoE's score-based cache (arXiv 2504.05897)"
    needs = frozenset({"router_scores"})
    n: int = 0
    """Experts to ask for; 0 = one and a half times top-k."""
    search: ClassVar[dict[str, Any]] = {"n": (1, 16, "log")}

    def limit(self, ctx):
        return min(self.n or ctx.top_k + (ctx.top_k + 1) // 2, ctx.n_experts)

    def state(self, ctx):
        shape = (ctx.n_layers, ctx.n_experts)
        n = np.array([self.limit(ctx)], np.int64)
        return State(np.full(shape, -np.inf), np.zeros(ctx.n_experts), n)

    @staticmethod
    def on_event(s, pool, ev):
        # Of a micro-batch without a known row nothing can be guessed.
        s.scores[ev.layer, :] = 0.0 if ev.scores.shape[0] else -np.inf
        for t in range(ev.scores.shape[0]):
            for j in range(pool.n_experts):
                s.scores[ev.layer, j] += ev.scores[t, j]

    @staticmethod
    def prefetch(s, pool, ev, out):
        layer = (ev.layer + 1) % pool.n_layers
        for j in range(pool.n_experts):
            s.order[j] = s.scores[layer, j]
        found = 0
        while found < s.n[0]:
            best = np.argmax(s.order)
            if s.order[best] == -np.inf:
                break
            s.order[best] = -np.inf
            out[found] = layer * pool.n_experts + best
            found += 1
        return found
