"""A number for every expert of a layer, learned while running: logistic in features and pair weights.

``number = logistic(w . x + sum of pairs[source, layer, i, e])`` over the experts i that each
*source* chose. x are decayed counts of uses, age, and what followed earlier tokens like this one. All
sequences share the weights; features are of one sequence's track (`uvmsim.policies.online.tracks`).
Steps: Adagrad (Duchi, Hazan and Singer 2011) for w, shrinking with the turns for pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from traces.errors import InputError
from uvmsim.core.jit import inlined
from uvmsim.core.lanes import sums_of_products
from uvmsim.policies.base import Context
from uvmsim.policies.online.arithmetic import ONE, ZERO, chance_of, log_of
from uvmsim.policies.online.history import LIKE, kept, place

HALF_LIVES = (1.0, 4.0, 16.0, 64.0, 256.0)
"""Turns of a layer in which a decayed count halves."""
COUNTS = len(HALF_LIVES)
AGE, NOW, HAD, FOLLOW, LATER = (COUNTS + i for i in (0, 1, 2, 4, 6))
BIAS = COUNTS + 8
"""Places of the other features: log of turns since the last use; used in the last turn; whether earlier
tokens are like this one (by one mark, by two), the share of them that the expert followed, and uses by
the `STEPS` tokens after, each weighing `FADE` of the one before; 1."""
FEATURES = COUNTS + 9
STEPS, FADE = 4, np.float32(0.78)
SOURCES = 4
OLDEST = 256
"""Ages above are this one."""
UNSEEN = -64
"""Turn of the last use of what was never used."""
FLOOR = np.float32(0.02)
FIRST_GRADIENT = 0.01
EAGER, EARLY = np.float32(3), np.float32(300)
"""Pairs take steps that are larger by this factor at first, by half of it after so many turns."""
BYTES = 16 << 20
"""What a learner with its history may take, where the pair weights leave room."""
MOST_BYTES = 1 << 29
"""Pair weights that would take more are refused."""
MOST_TRACKS, LEAST_TRACKS = 32, 4
MOST_TOKENS, LEAST_TOKENS = 4096, 512


class Learner(NamedTuple):
    """w, gradient: float32 [FEATURES]; pairs: float32 [SOURCES, layers, experts, experts]. By track:
    counts: float32 [N, layers, COUNTS, experts]; last: int32 [N, layers, experts], turn of the last
    use; turn: int32 [N, layers]; number: float32 [N, layers, experts], as of the last turn; follow:
    float32 [N, layers, 4, experts], features `FOLLOW` and `LATER`; had: float32 [N, layers, 2];
    source: int16 [N, layers, SOURCES, top_k], -1 none; known: bool [N, layers], whether there is a
    number to learn from. Scratch: x, old: float32 [FEATURES, experts]; u, err, used: float32 [experts];
    now: int16 [SOURCES, top_k]. keep, scale: float32 [COUNTS], a turn's decay, and what makes an even
    count 1; rate: float32 [2]."""

    w: np.ndarray
    gradient: np.ndarray
    pairs: np.ndarray
    counts: np.ndarray
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


def knowledge(s: Learner, n: int) -> dict[str, np.ndarray]:
    """What is known of the model: weights and how far they have come, and the counts that a new
    sequence begins with, which are those of track ``n``. Views."""
    return {
        "w": s.w, "gradient": s.gradient, "pairs": s.pairs, "counts": s.counts[n],
        "last": s.last[n], "turn": s.turn[n],
    }  # fmt: skip


def check_known(known: Mapping[str, np.ndarray]) -> None:
    """Raise `InputError` where no run can have ended with ``known``."""
    last, turn = known["last"], known["turn"]
    late = (last >= turn[:, None]) | (last < UNSEEN)
    if (
        (turn < 0).any()
        or late.any()
        or (known["counts"] < 0).any()
        or (known["gradient"] <= 0).any()
    ):
        raise InputError("counts, turns or gradients that no run ends with; save it again")


def sizes(ctx: Context) -> tuple[int, int]:
    """Tracks and tokens that fit into `BYTES` beside the pair weights."""
    layers, experts, k = ctx.n_layers, ctx.n_experts, ctx.top_k
    left = BYTES - SOURCES * layers * experts * experts * 4 - (512 << 10)
    tokens = LEAST_TOKENS
    while tokens < MOST_TOKENS and 2 * tokens * (2 * layers * k + 104) <= 0.6 * left:
        tokens *= 2
    left -= tokens * (2 * layers * k + 104)
    track = layers * (experts * 4 * (COUNTS + 6) + 2 * SOURCES * k + 16)
    return int(np.clip(left // track, LEAST_TRACKS, MOST_TRACKS)), tokens


def new_learner(ctx: Context, tracks: int, rate: float, pair_rate: float) -> Learner:
    """Nothing known; ``rate``: steps of the weights, ``pair_rate``: of the pairs. Raises `InputError`
    where pairs of experts would fill the memory."""
    layers, experts, k = ctx.n_layers, ctx.n_experts, ctx.top_k
    if SOURCES * layers * experts * experts * 4 > MOST_BYTES:
        raise InputError(
            f"a learned policy weighs pairs of a layer's experts: {experts:,} are too many (it is for "
            "models; plain sequences of ids have lrfu, s3fifo and others)"
        )
    f32 = np.float32
    keep = 0.5 ** (1 / np.array(HALF_LIVES))
    w = np.zeros(FEATURES, f32)
    w[:COUNTS] = 0.2
    w[BIAS] = -1
    return Learner(
        w, np.full(FEATURES, FIRST_GRADIENT, f32), np.zeros((SOURCES, layers, experts, experts), f32),
        np.zeros((tracks, layers, COUNTS, experts), f32),
        np.full((tracks, layers, experts), UNSEEN, np.int32), np.zeros((tracks, layers), np.int32),
        np.zeros((tracks, layers, experts), f32), np.zeros((tracks, layers, 4, experts), f32),
        np.zeros((tracks, layers, 2), f32), np.full((tracks, layers, SOURCES, k), -1, np.int16),
        np.zeros((tracks, layers), np.bool_), np.zeros((FEATURES, experts), f32),
        np.zeros((FEATURES, experts), f32), np.zeros(experts, f32), np.zeros(experts, f32),
        np.zeros(experts, f32), np.full((SOURCES, k), -1, np.int16), keep.astype(f32),
        ((1 - keep) * experts / k).astype(f32), np.array([rate, pair_rate], f32),
    )  # fmt: skip


@inlined
def inherit(s, n, other):
    """A new sequence on track ``n`` starts from what track ``other`` has counted."""
    for layer in range(s.turn.shape[1]):
        s.known[n, layer] = False
        s.turn[n, layer] = s.turn[other, layer]
        for e in range(s.last.shape[2]):
            s.last[n, layer, e] = s.last[other, layer, e]
            for j in range(COUNTS):
                s.counts[n, layer, j, e] = s.counts[other, layer, j, e]


@inlined
def features(s, n, layer, x):
    """Write the features of a layer's experts, as of track ``n``'s last turn there, to ``x``."""
    for j in range(COUNTS):
        count, row, scale = s.counts[n, layer, j], x[j], s.scale[j]
        for e in range(row.size):
            row[e] = log_of(count[e] * scale + FLOOR)
    last, turn = s.last[n, layer], s.turn[n, layer] - 1
    age, now = x[AGE], x[NOW]
    for e in range(last.size):
        age[e] = log_of(np.float32(1 + min(turn - last[e], OLDEST)))
        now[e] = ONE if turn == last[e] else ZERO
    for kind in range(2):
        x[HAD + kind] = s.had[n, layer, kind]
    for j in range(4):
        row, follow = x[FOLLOW + j], s.follow[n, layer, j]
        for e in range(row.size):
            row[e] = follow[e]
    x[BIAS] = ONE


@inlined
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
        count, keep, used = s.counts[n, layer, j], s.keep[j], s.used
        for e in range(used.size):
            count[e] = count[e] * keep + used[e]


@inlined
def see_followers(s, h, n, layer, token, after):
    """What tokens like ``token`` chose in the layer (``after``: those after them), and later ones."""
    like = h.like[place(h, token)]
    for kind in range(2):
        lo, hi = (0, LIKE) if kind == 0 else (LIKE, like.size)
        follow, later = s.follow[n, layer, kind], s.follow[n, layer, 2 + kind]
        follow[:] = ZERO
        later[:] = ZERO
        found = 0
        for j in range(lo, hi):
            if _follower(h, like[j], after) >= 0:
                found += 1
        s.had[n, layer, kind] = ONE if found else ZERO
        for j in range(lo, hi):
            q = _follower(h, like[j], after)
            if q < 0:
                continue
            part = ONE / np.float32(found)
            _add(h, follow, q, layer, part)
            for _ in range(STEPS):
                q = h.after[place(h, q)]
                if not kept(h, q):
                    break
                part *= FADE
                _add(h, later, q, layer, part)


@inlined
def _add(h, share, token, layer, part):
    """Add ``part`` to the share of all that a token chose in a layer."""
    ids = h.ids[layer, place(h, token)]
    for k in range(ids.size):
        if ids[k] >= 0:
            share[ids[k]] += part


@inlined
def _follower(h, q, after):
    if kept(h, q) and after:
        q = h.after[place(h, q)]
    return q if kept(h, q) else np.int64(-1)


@inlined
def see_source(s, h, which, token, layer):
    """Source ``which`` is what a token chose in a layer; nothing where there is none."""
    there = layer >= 0 and kept(h, token)
    for k in range(s.now.shape[1]):
        s.now[which, k] = h.ids[layer, place(h, token), k] if there else -1


@inlined
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


@inlined
def learn(s, n, layer):
    """A step by the errors in ``err`` of the numbers that the features in ``old`` and track ``n``'s
    sources gave."""
    err = s.err
    for j in range(FEATURES):
        row = s.old[j]
        first, second = sums_of_products(err, row)
        s.gradient[j] += second
        s.w[j] += s.rate[0] * first / np.sqrt(s.gradient[j])
    rate = s.rate[1] * (ONE + EAGER * (EARLY / (EARLY + np.float32(s.turn[n, layer]))))
    for which in range(SOURCES):
        for k in range(s.source.shape[3]):
            i = s.source[n, layer, which, k]
            if i >= 0:
                pair = s.pairs[which, layer, i]
                for e in range(err.size):
                    pair[e] += rate * err[e]


@inlined
def keep_numbers(s, n, layer):
    """The numbers in ``u`` and their sources are those to learn from at the next turn."""
    number, u = s.number[n, layer], s.u
    for e in range(u.size):
        number[e] = u[e]
    for which in range(SOURCES):
        for k in range(s.now.shape[1]):
            s.source[n, layer, which, k] = s.now[which, k]
    s.known[n, layer] = True
