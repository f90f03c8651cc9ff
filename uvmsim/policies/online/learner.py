"""A number for every expert of a layer, learned while running: logistic in features and pair weights.

``number = logistic(w . x + sum of pairs[source, layer, i, e])`` over the experts i that each *source*
chose. x are decayed counts of uses, age, and what followed earlier tokens like this one. All sequences
share the weights; features are of one sequence's track (`uvmsim.policies.online.tracks`). Steps: Adagrad
(Duchi, Hazan and Singer 2011) for w, of one size for pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Context
from uvmsim.policies.lists import inner
from uvmsim.policies.online.arithmetic import ONE, ZERO, chance_of, log_of
from uvmsim.policies.online.history import LIKE, History, kept, place

HALF_LIVES = (1.0, 4.0, 16.0, 64.0, 256.0)
"""Turns of a layer in which a decayed count halves."""
COUNTS = len(HALF_LIVES)
AGE, NOW, HAD, FOLLOW, BIAS = COUNTS, COUNTS + 1, COUNTS + 2, COUNTS + 4, COUNTS + 6
"""Places of the other features: log of turns since the last use; used in the last turn; whether earlier
tokens are like this one (by one mark, by two), and the share of them that the expert followed; 1."""
FEATURES = COUNTS + 7
SOURCES = 4
OLDEST = 256
"""Ages above are this one."""
UNSEEN = -64
"""Turn of the last use of what was never used."""
FLOOR = np.float32(0.02)
FIRST_GRADIENT = 0.01
BYTES = 16 << 20
"""What a learner with its history may take, where the pair weights leave room."""
MOST_TRACKS, LEAST_TRACKS = 32, 4
MOST_TOKENS, LEAST_TOKENS = 4096, 512


class Learner(NamedTuple):
    """w, gradient: float32 [FEATURES]; pairs: float32 [SOURCES, layers, experts, experts]. By track:
    count: float32 [N, layers, COUNTS, experts]; last: int32 [N, layers, experts], turn of the last use;
    turn: int32 [N, layers]; number: float32 [N, layers, experts], as of the last turn; follow: float32
    [N, layers, 2, experts]; had: float32 [N, layers, 2]; source: int16 [N, layers, SOURCES, top_k], -1
    none; known: bool [N, layers], whether there is a number to learn from. Scratch: x, old: float32
    [FEATURES, experts]; u, err, used: float32 [experts]; now: int16 [SOURCES, top_k]. keep, scale:
    float32 [COUNTS], a turn's decay, and what makes an even count 1; rate: float32 [2]."""

    w: np.ndarray
    gradient: np.ndarray
    pairs: np.ndarray
    count: np.ndarray
    last: np.ndarray
    turn: np.ndarray
    number: np.ndarray
    follow: np.ndarray
    had: np.ndarray
    source: np.ndarray
    known: np.ndarray
    x: np.ndarray
    old: np.ndarray
    u: np.ndarray
    err: np.ndarray
    used: np.ndarray
    now: np.ndarray
    keep: np.ndarray
    scale: np.ndarray
    rate: np.ndarray


def sizes(ctx: Context) -> tuple[int, int]:
    """Tracks and tokens that fit into `BYTES` beside the pair weights."""
    layers, experts, k = ctx.n_layers, ctx.n_experts, ctx.top_k
    left = BYTES - SOURCES * layers * experts * experts * 4 - (512 << 10)
    tokens = LEAST_TOKENS
    while tokens < MOST_TOKENS and 2 * tokens * (2 * layers * k + 104) <= 0.6 * left:
        tokens *= 2
    left -= tokens * (2 * layers * k + 104)
    track = layers * (experts * 4 * (COUNTS + 4) + 2 * SOURCES * k + 16)
    return int(np.clip(left // track, LEAST_TRACKS, MOST_TRACKS)), tokens


def new_learner(ctx: Context, tracks: int, rate: float, pair_rate: float) -> Learner:
    """Nothing known; ``rate``: steps of the weights, ``pair_rate``: of the pairs."""
    layers, experts, k = ctx.n_layers, ctx.n_experts, ctx.top_k
    f32 = np.float32
    keep = 0.5 ** (1 / np.array(HALF_LIVES))
    w = np.zeros(FEATURES, f32)
    w[:COUNTS] = 0.2
    w[BIAS] = -1
    return Learner(
        w, np.full(FEATURES, FIRST_GRADIENT, f32), np.zeros((SOURCES, layers, experts, experts), f32),
        np.zeros((tracks, layers, COUNTS, experts), f32),
        np.full((tracks, layers, experts), UNSEEN, np.int32), np.zeros((tracks, layers), np.int32),
        np.zeros((tracks, layers, experts), f32), np.zeros((tracks, layers, 2, experts), f32),
        np.zeros((tracks, layers, 2), f32), np.full((tracks, layers, SOURCES, k), -1, np.int16),
        np.zeros((tracks, layers), np.bool_), np.zeros((FEATURES, experts), f32),
        np.zeros((FEATURES, experts), f32), np.zeros(experts, f32), np.zeros(experts, f32),
        np.zeros(experts, f32), np.full((SOURCES, k), -1, np.int16), keep.astype(f32),
        ((1 - keep) * experts / k).astype(f32), np.array([rate, pair_rate], f32),
    )  # fmt: skip


@inner
def inherit(s, n, other):
    """A new sequence on track ``n`` starts from what track ``other`` has counted."""
    for layer in range(s.turn.shape[1]):
        s.known[n, layer] = False
        s.turn[n, layer] = s.turn[other, layer]
        for e in range(s.last.shape[2]):
            s.last[n, layer, e] = s.last[other, layer, e]
            for j in range(COUNTS):
                s.count[n, layer, j, e] = s.count[other, layer, j, e]


@inner
def features(s, n, layer, x):
    """Write the features of a layer's experts, as of track ``n``'s last turn there, to ``x``."""
    for j in range(COUNTS):
        count, row, scale = s.count[n, layer, j], x[j], s.scale[j]
        for e in range(row.size):
            row[e] = log_of(count[e] * scale + FLOOR)
    last, turn = s.last[n, layer], s.turn[n, layer] - 1
    age, now = x[AGE], x[NOW]
    for e in range(last.size):
        age[e] = log_of(np.float32(1 + min(turn - last[e], OLDEST)))
        now[e] = ONE if turn == last[e] else ZERO
    for kind in range(2):
        had, share, follow = x[HAD + kind], x[FOLLOW + kind], s.follow[n, layer, kind]
        for e in range(had.size):
            had[e] = s.had[n, layer, kind]
            share[e] = follow[e]
    x[BIAS] = ONE


@inner
def count_use(s, n, layer, chosen):
    """Track ``n`` has a turn of the layer and uses ``chosen`` (ids in the layer)."""
    s.used[:] = ZERO
    turn = s.turn[n, layer]
    for k in range(chosen.size):
        if chosen[k] >= 0:
            s.used[chosen[k]] = ONE
            s.last[n, layer, chosen[k]] = turn
    s.turn[n, layer] = turn + 1
    for j in range(COUNTS):
        count, keep, used = s.count[n, layer, j], s.keep[j], s.used
        for e in range(used.size):
            count[e] = count[e] * keep + used[e]


@inner
def see_followers(s, h, n, layer, token, after):
    """What tokens like ``token`` chose in the layer; ``after``: what those after them did."""
    like = h.like[place(h, token)]
    for kind in range(2):
        lo, hi = (0, LIKE) if kind == 0 else (LIKE, like.size)
        follow = s.follow[n, layer, kind]
        follow[:] = ZERO
        found = 0
        for j in range(lo, hi):
            if _follower(h, like[j], after) >= 0:
                found += 1
        s.had[n, layer, kind] = ONE if found else ZERO
        if found == 0:
            continue
        share = ONE / np.float32(found)
        for j in range(lo, hi):
            q = _follower(h, like[j], after)
            if q >= 0:
                ids = h.ids[place(h, q), layer]
                for k in range(ids.size):
                    if ids[k] >= 0:
                        follow[ids[k]] += share


@inner
def _follower(h, q, after):
    if kept(h, q) and after:
        q = h.after[place(h, q)]
    return q if kept(h, q) else np.int64(-1)


@inner
def see_source(s, h, which, token, layer):
    """Source ``which`` is what a token chose in a layer; nothing where there is none."""
    there = layer >= 0 and kept(h, token)
    for k in range(s.now.shape[1]):
        s.now[which, k] = h.ids[place(h, token), layer, k] if there else -1


@inner
def numbers(s, layer):
    """Write the layer's numbers, from the features in ``x`` and the sources in ``now``, to ``u``."""
    u = s.u
    u[:] = ZERO
    for j in range(FEATURES):
        w, row = s.w[j], s.x[j]
        for e in range(u.size):
            u[e] += w * row[e]
    for which in range(SOURCES):
        for k in range(s.now.shape[1]):
            i = s.now[which, k]
            if i >= 0:
                pair = s.pairs[which, layer, i]
                for e in range(u.size):
                    u[e] += pair[e]
    for e in range(u.size):
        u[e] = chance_of(u[e])


@inner
def learn(s, n, layer):
    """A step by the errors in ``err`` of the numbers that the features in ``old`` and track ``n``'s
    sources gave."""
    err = s.err
    for j in range(FEATURES):
        first, second, row = ZERO, ZERO, s.old[j]
        for e in range(err.size):
            d = err[e] * row[e]
            first += d
            second += d * d
        s.gradient[j] += second
        s.w[j] += s.rate[0] * first / np.sqrt(s.gradient[j])
    for which in range(SOURCES):
        for k in range(s.source.shape[3]):
            i = s.source[n, layer, which, k]
            if i >= 0:
                pair, rate = s.pairs[which, layer, i], s.rate[1]
                for e in range(err.size):
                    pair[e] += rate * err[e]


@inner
def keep_numbers(s, n, layer):
    """The numbers in ``u`` and their sources are those to learn from at the next turn."""
    number, u = s.number[n, layer], s.u
    for e in range(u.size):
        number[e] = u[e]
    for which in range(SOURCES):
        for k in range(s.now.shape[1]):
            s.source[n, layer, which, k] = s.now[which, k]
    s.known[n, layer] = True
