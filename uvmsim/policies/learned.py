"""A value for every expert, learned while the cache runs; the least valuable leaves.

The value is E[gamma^(tokens to the next use)]; docs/learned-policies.md defines it.
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np

from traces.errors import InputError
from uvmsim.core.jit import inlined
from uvmsim.policies.base import LAYER, Eviction, in_use
from uvmsim.policies.layer_heaps import (
    LayerHeaps,
    layer_add,
    layer_first,
    layer_least,
    layer_rebuild,
    layer_remove,
    new_layer_heaps,
)
from uvmsim.policies.lists import inner
from uvmsim.policies.online.arithmetic import ONE
from uvmsim.policies.online.history import History, new_history, place
from uvmsim.policies.online.learner import (
    OLDEST,
    Learner,
    check_known,
    count_use,
    features,
    keep_numbers,
    knowledge,
    learn,
    new_learner,
    numbers,
    see_followers,
    see_source,
    sizes,
)
from uvmsim.policies.online.rows import first_row, meet
from uvmsim.policies.online.tracks import Tracks, is_live, new_tracks

INFINITE = np.float32(np.inf)


class State(NamedTuple):
    """values: heaps by value (float32); learner, history, tracks: see uvmsim/policies/online; served:
    int64 [layers], events of a layer; learned: int64 [layers], its tokens; used: int64 [n_total], event
    of its layer that used an expert last; fade: float32 [OLDEST + 1], gamma to the power of a number of
    tokens; wait: float32 [2 layers], gamma to the power of a number of layers, once over and again;
    gamma: float32 [1]; warm: int64 [1], tokens a layer learns from before its values count."""

    values: LayerHeaps
    learner: Learner
    history: History
    tracks: Tracks
    served: np.ndarray
    learned: np.ndarray
    used: np.ndarray
    fade: np.ndarray
    wait: np.ndarray
    gamma: np.ndarray
    warm: np.ndarray


class Learned(Eviction):
    """Evict whose next use is furthest by a value learned from nothing while running."""

    name = "learned"
    source = (
        "ours: TD(0) (Sutton 1988) on a logistic of decayed counts, pairs of choices, and what "
        "followed tokens like this one; layer-lru's order until a layer has seen 64 tokens"
    )
    reads = frozenset({"clock"})
    knowledge_depends_on = frozenset({"tau"})
    tau: float = 0.0
    """gamma = exp(-1 / tau): tokens in which a use to come loses most of its weight. 0: twice the
    tokens whose experts the pool holds, from 2 to 6: what a small pool keeps must be used soon."""
    rate: float = 0.05
    """Step of the features' weights (Adagrad)."""
    pair_rate: float = 0.015
    """Step of the pair weights."""
    warm: int = 64
    """Tokens a layer learns from before its values count."""
    search: ClassVar[dict[str, Any]] = {
        "tau": (1, 32, "log"), "rate": (0.005, 0.5, "log"), "pair_rate": (0.001, 0.2, "log"),
        "warm": (8, 512, "log"),
    }  # fmt: skip

    def state(self, ctx):
        for name, least in (("tau", 0.0), ("rate", 0.0), ("pair_rate", 0.0), ("warm", 0)):
            if not least <= getattr(self, name) < 1e9:
                raise InputError(
                    f"policy learned: {name}={getattr(self, name):g} must be at least {least:g}"
                )
        n_tracks, n_tokens = sizes(ctx)
        layers = ctx.n_layers
        held = float(ctx.capacity.sum()) / (layers * ctx.top_k)
        gamma = np.exp(-1 / (self.tau or min(max(2 * held, 2.0), 6.0)))
        return State(
            new_layer_heaps(ctx, np.float32),
            new_learner(ctx, n_tracks, self.rate, self.pair_rate), new_history(ctx, n_tokens),
            new_tracks(n_tracks), np.zeros(layers, np.int64), np.zeros(layers, np.int64),
            np.full(ctx.n_total, -OLDEST, np.int64),
            (gamma ** np.arange(OLDEST + 1)).astype(np.float32),
            (gamma ** (np.arange(2 * layers) % layers / layers)).astype(np.float32),
            np.array([gamma], np.float32), np.array([self.warm], np.int64),
        )  # fmt: skip

    def knowledge(self, s):
        return knowledge(s.learner, int(s.tracks.now[0])) | {"learned": s.learned}

    def recall(self, s, known):
        check_known(known)
        if (known["learned"] < 0).any():
            raise InputError("layers that have seen fewer than no tokens; save it again")
        super().recall(s, known)

    @staticmethod
    def on_event(s, pool, ev):
        m, h, layer = s.learner, s.history, ev.layer
        for r in range(first_row(h, ev), ev.chosen.shape[0]):
            token, n = meet(m, h, s.tracks, ev, r)
            # Learn from what was thought of the experts at the track's last turn, and think anew.
            known = m.known[n, layer]
            if known:
                features(m, n, layer, m.old)
            count_use(m, n, layer, ev.chosen[r])
            see_followers(m, h, n, layer, token, True)
            features(m, n, layer, m.x)
            see_source(m, h, 0, token, layer)
            see_source(m, h, 1, token, layer - 1)
            see_source(m, h, 2, token, layer - 2)
            see_source(m, h, 3, h.before[place(h, token)], layer)
            numbers(m, layer)
            if known:
                number, gamma = m.number[n, layer], s.gamma[0]
                for e in range(number.size):
                    m.err[e] = (ONE if m.used[e] > 0 else gamma * m.u[e]) - number[e]
                learn(m, n, layer)
            keep_numbers(m, n, layer)
        s.learned[ev.layer] += ev.chosen.shape[0]
        s.served[ev.layer] += 1
        for j in range(len(ev.experts)):
            s.used[ev.experts[j]] = s.served[ev.layer]
        _value(s, pool, ev.layer, ev.step)
        layer_rebuild(s.values, pool, ev.layer)

    @staticmethod
    def on_insert(s, pool, e, i):
        layer_add(s.values, pool, e)

    @staticmethod
    def on_evict(s, pool, e):
        layer_remove(s.values, pool, e)

    @staticmethod
    def victim(s, pool, p):
        h, here = s.values, pool.clock[LAYER]
        if pool.used.size > 1:
            return layer_least(h, pool, p)
        mine, shift = layer_least(h, pool, here), pool.n_layers - 1 - here
        own = h.key[mine] * s.wait[shift + here] if mine >= 0 else INFINITE
        best, least = here, own
        for layer in range(pool.n_layers):
            value = own if layer == here else h.top[layer] * s.wait[shift + layer]
            if value < least or (value == least and layer < best):
                best, least = np.int64(layer), value
        if best == here or least == INFINITE:
            return mine
        e = layer_first(h, pool, best)
        return e if not in_use(pool, e) else _free_victim(s, pool, here)


@inner
def _free_victim(s, pool, here):
    """The victim where other layers have experts in use: just prefetched, or asked for."""
    best, least = np.int32(-1), INFINITE
    for layer in range(pool.n_layers):
        e = layer_least(s.values, pool, layer)
        if e >= 0:
            value = s.values.key[e] * s.wait[pool.n_layers - 1 - here + layer]
            if value < least:
                best, least = e, value
    return best


@inlined
def _value(s, pool, layer, step):
    """Values of a layer's experts: whoever of those being served may use one next. Before enough is
    learned, gamma to the power of turns missed, which is layer-lru's order."""
    lo, experts = layer * pool.n_experts, pool.n_experts
    value = s.values.key[lo : lo + experts]
    if s.learned[layer] <= s.warm[0]:
        for e in range(experts):
            value[e] = s.fade[min(s.served[layer] - s.used[lo + e], OLDEST)]
        return
    m = s.learner
    value[:] = ONE
    for n in range(m.known.shape[0]):
        if is_live(s.tracks, n, step) and m.known[n, layer]:
            number = m.number[n, layer]
            for e in range(experts):
                value[e] *= ONE - number[e]
    for e in range(experts):
        value[e] = ONE - value[e]
