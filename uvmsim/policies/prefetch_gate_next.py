"""Prefetch by the next layer's own router, run too early, weighed against what was learned."""

from typing import NamedTuple

import numpy as np

from traces.errors import InputError
from uvmsim.core.jit import inlined
from uvmsim.policies import prefetch_learned
from uvmsim.policies.base import Prefetch
from uvmsim.policies.online.arithmetic import ONE, ZERO, chance_of, log_of
from uvmsim.policies.online.governor import judge
from uvmsim.policies.online.learner import FIRST_GRADIENT
from uvmsim.policies.online.link import pass_event
from uvmsim.policies.online.rows import first_row, meet
from uvmsim.policies.prefetch_learned import LearnedNext

LEARNED, MARGIN, CHOSEN, FIRST, LISTED, BIAS = range(6)
"""Places of the features: log odds of the learned chance; how far the router's score is above the
limit of its top k; whether it is in the top k, the first, listed at all; 1."""
SMALL = np.float32(1e-3)
"""Chances nearer to 0 or 1, and ranges of scores below it, are this."""
BELOW = np.float32(0.25)
"""How far below the last that is listed, as a share of the list's range, the others are taken to be."""

_fetch = LearnedNext.prefetch


class State(NamedTuple):
    """next: that of `learned-next`, whose ``left`` gets the chances weighed here; w, gradient: float32
    [layers, 6]; guess: int16, rank: float32 [N, layers, 2k], what the router made of a track's token
    at the last forecast of the layer; x: float32 [6, experts], left: float32 [experts], scratch; rate:
    float32 [1]."""

    next: prefetch_learned.State
    w: np.ndarray
    gradient: np.ndarray
    guess: np.ndarray
    rank: np.ndarray
    x: np.ndarray
    left: np.ndarray
    rate: np.ndarray


class GateNext(Prefetch):
    """The layer `ahead`'s experts by its router run too early, weighed against `learned-next`'s."""

    name = "gate-next"
    source = (
        "ours: a logistic of the next layer's router on this layer's residual stream (the guess of "
        "Pre-gated MoE, FATE and others) and of learned-next's chance, learned while running"
    )
    needs = frozenset({"router_guesses"})
    theta: float = 0.5
    """Least probability."""
    ahead: int = 1
    """Layers ahead, 1 or 2."""
    n: int = 0
    """Most experts a call may fetch; 0 = top-k."""
    budget: float = 0.0
    """Bytes the link moves while a layer computes, as of `learned-next`. 0 = no limit."""
    useful: float = 0.0
    """Share of the prefetched bytes that must be of use, as of `learned-next`. 0 = no governor."""
    rate: float = 0.05
    pair_rate: float = 0.02
    gate_rate: float = 0.1
    """Step of the weights of router and learned chance."""

    def limit(self, ctx):
        return ctx.n_experts

    def state(self, ctx):
        if not 1 <= self.ahead <= 2:
            raise InputError(f"policy gate-next: ahead={self.ahead} must be from 1 to 2")
        if not 0 <= self.gate_rate <= 1e3:
            raise InputError(
                f"policy gate-next: gate_rate={self.gate_rate:g} must be from 0 to 1000"
            )
        inner = LearnedNext()
        for name in ("theta", "ahead", "n", "budget", "useful", "rate", "pair_rate"):
            setattr(inner, name, getattr(self, name))
        made = inner.state(ctx)
        tracks, width = made.made.shape[0], min(2 * ctx.top_k, ctx.n_experts)
        w = np.zeros((ctx.n_layers, 6), np.float32)
        w[:, LEARNED] = 1
        return State(
            made, w, np.full_like(w, FIRST_GRADIENT),
            np.full((tracks, ctx.n_layers, width), -1, np.int16),
            np.zeros((tracks, ctx.n_layers, width), np.float32),
            np.zeros((6, ctx.n_experts), np.float32), np.zeros(ctx.n_experts, np.float32),
            np.array([self.gate_rate], np.float32),
        )  # fmt: skip

    @staticmethod
    def on_event(s, pool, ev):
        n = s.next
        pass_event(n.link, pool, ev)
        judge(n.governor, pool, ev)
        s.left[:] = ONE
        ahead = n.n[0]
        target = (ev.layer + ahead) % pool.n_layers
        for r in range(first_row(n.history, ev), ev.chosen.shape[0]):
            token, track = meet(n.learner, n.history, n.tracks, ev, r)
            _learn(s, track, ev.layer, ev.chosen[r])
            prefetch_learned._turn(n, track, ev.layer, ev.chosen[r])
            prefetch_learned._forecast(n, pool, track, ev.layer, token)
            _keep(s, track, target, ev.guesses[r, ahead - 1], ev.guess_scores[r, ahead - 1])
            _look(s, track, target, ev.chosen.shape[1])
            for e in range(s.left.size):
                s.left[e] *= ONE - _chance(s, target, e)
        for e in range(s.left.size):
            n.left[e] = s.left[e]

    @staticmethod
    def prefetch(s, pool, ev, out):
        return _fetch(s.next, pool, ev, out)


@inlined
def _keep(s, track, layer, guess, rank):
    """Keep what the layer's router made of a track's token. Experts of a group that was ruled out
    (-inf) rank with the last that was not."""
    for j in range(guess.size):
        ruled_out = j > 0 and rank[j] == -np.inf
        s.guess[track, layer, j] = guess[j]
        s.rank[track, layer, j] = s.rank[track, layer, j - 1] if ruled_out else rank[j]


@inlined
def _look(s, track, layer, k):
    """Write the features of a layer's experts to ``x``: the learner's number, and the guess kept."""
    number, guess, rank, x = s.next.learner.number[track, layer], s.guess[track, layer], \
        s.rank[track, layer], s.x  # fmt: skip
    last = guess.size - 1
    there = guess[last] >= 0
    low = limit = ZERO
    scale = ONE
    if there:
        scale = ONE / max(rank[0] - rank[last], SMALL)
        limit = (rank[k - 1] + rank[min(k, last)]) * np.float32(0.5)
        low = (rank[last] - limit) * scale - BELOW
    for e in range(number.size):
        p = min(max(number[e], SMALL), ONE - SMALL)
        x[LEARNED, e] = log_of(p) - log_of(ONE - p)
        x[MARGIN, e] = low
        x[CHOSEN, e] = ZERO
        x[FIRST, e] = ZERO
        x[LISTED, e] = ZERO
        x[BIAS, e] = ONE
    if there:
        for j in range(guess.size):
            e = guess[j]
            x[MARGIN, e] = (rank[j] - limit) * scale
            x[CHOSEN, e] = ONE if j < k else ZERO
            x[LISTED, e] = ONE
        x[FIRST, guess[0]] = ONE


@inlined
def _chance(s, layer, e):
    """The probability of an expert whose features are in ``x``."""
    u = ZERO
    for j in range(6):
        u += s.w[layer, j] * s.x[j, e]
    return chance_of(u)


@inlined
def _learn(s, track, layer, chosen):
    """A step by what a track's token chose, if the forecast is still to be learned from."""
    n = s.next
    m = n.learner
    if not (m.known[track, layer] and n.made[track, layer] == m.turn[track, layer]):
        return
    _look(s, track, layer, chosen.size)
    err = m.err
    for e in range(err.size):
        err[e] = -_chance(s, layer, e)
    for k in range(chosen.size):
        if chosen[k] >= 0:
            err[chosen[k]] += ONE
    for j in range(6):
        step = ZERO
        for e in range(err.size):
            step += err[e] * s.x[j, e]
        s.gradient[layer, j] += step * step
        s.w[layer, j] += s.rate[0] * step / np.sqrt(s.gradient[layer, j])
