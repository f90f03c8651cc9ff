"""Compiled inner loops of the dependent generator (see `traces.synth.dependent` for the model)."""

from __future__ import annotations

import math

import numpy as np

from traces.jit import compiled
from traces.synth.kernels import gumbel


@compiled(nogil=True)
def generate_dependent(
    logits: np.ndarray,
    k: int,
    bounds: np.ndarray,
    decay: np.ndarray,
    share: np.ndarray,
    kept: float,
    after: np.ndarray,
    below: np.ndarray,
    beside: np.ndarray,
    under: np.ndarray,
    rng: np.random.Generator,
    ids: np.ndarray,
    perturbed: np.ndarray,
) -> None:  # pragma: no cover
    """As `traces.synth.kernels.generate_layer`, with what a choice adds to the score of another.

    ``after`` float32 [N, N]: what expert i of the token before adds to e; ``below`` float32 [N, N]:
    what expert i of this token in the layer before adds, which is ``under``, int [T, k] (or [0, k]
    where there is none); ``beside`` float32 [N, N]: what expert i of this very choice adds once it is
    chosen. ``kept``: correlation of the sequence-long part (decay 1) from one sequence to the next.
    Components without a share are not drawn.
    """
    n, c = len(logits), len(decay)
    state = np.zeros((n, c))
    fresh = np.sqrt(1.0 - decay * decay)
    scale = np.sqrt(share)
    white = math.sqrt(max(0.0, 1.0 - share.sum()))
    moved = math.sqrt(1.0 - kept * kept)
    z = np.empty(n)
    chosen = np.empty(k, np.int64)
    layered = len(under) > 0
    for s in range(len(bounds) - 1):
        for e in range(n):
            for i in range(c):
                if share[i] > 0.0:
                    x = rng.standard_normal()
                    again = decay[i] == 1.0 and s > 0
                    state[e, i] = kept * state[e, i] + moved * x if again else x
        for t in range(bounds[s], bounds[s + 1]):
            first = t == bounds[s]
            for e in range(n):
                x = white * rng.standard_normal()
                for i in range(c):
                    if share[i] > 0.0:
                        if not first and decay[i] < 1.0:
                            y = rng.standard_normal()
                            state[e, i] = decay[i] * state[e, i] + fresh[i] * y
                        x += scale[i] * state[e, i]
                z[e] = logits[e] + gumbel(x)
            if not first:
                for j in range(k):
                    row = after[chosen[j]]
                    for e in range(n):
                        z[e] += row[e]
            if layered:
                for j in range(k):
                    row = below[under[t, j]]
                    for e in range(n):
                        z[e] += row[e]
            for j in range(k):  # one after the other: each speaks for those it goes with
                best = np.argmax(z)
                chosen[j] = best
                ids[t, j] = best
                perturbed[t, j] = z[best]
                z[best] = -np.inf
                row = beside[best]
                for f in range(n):
                    z[f] += row[f]


HALVES = np.array([0.5 ** (1.0 / h) for h in (2.0, 8.0, 64.0)])
"""How counts of uses fade from token to token, for `learn_pairs`."""


@compiled(nogil=True)
def learn_pairs(
    ids: np.ndarray,
    under: np.ndarray,
    first: np.ndarray,
    n: int,
    epochs: int,
    rate: float,
    shrink: float,
    after: np.ndarray,
    below: np.ndarray,
    beside: np.ndarray,
) -> None:  # pragma: no cover
    """Fit ``after``, ``below`` and ``beside`` (float64 [N, N], zeros at first) to a layer: the ranks of
    the chosen by their scores (Plackett-Luce), with popularity and faded counts of uses beside the
    pairs, so that what lasts is not taken for what follows. Adagrad, in the order of time.

    ``ids``, ``under`` [T, k], -1 where missing ([0, k]: no layer before); ``first`` bool [T]: where a
    sequence begins.
    """
    t, k = ids.shape
    c = len(HALVES)
    base, base_g = np.zeros(n), np.full(n, 1e-6)
    w, w_g = np.zeros(c), np.full(c, 1e-6)
    after_g, below_g = np.full((n, n), 1e-6), np.full((n, n), 1e-6)
    beside_g = np.full((n, n), 1e-6)
    uses, seen, told = np.zeros((n, c)), np.zeros(c), np.zeros((n, c))
    u, p, err = np.zeros(n), np.zeros(n), np.zeros(n)
    here = np.zeros((k, n))
    layered = len(under) > 0
    for _ in range(epochs):
        for at in range(t):
            if first[at]:
                uses[:] = 0.0
                seen[:] = 0.0
            if ids[at, 0] < 0:
                continue
            known = not first[at] and ids[at - 1, 0] >= 0
            there = layered and under[at, 0] >= 0
            for e in range(n):
                u[e] = base[e]
                for i in range(c):
                    even = k / n * seen[i]
                    told[e, i] = math.log((uses[e, i] + 0.2) / (even + 0.2))
                    u[e] += w[i] * told[e, i]
            for j in range(k):
                if known:
                    for e in range(n):
                        u[e] += after[ids[at - 1, j], e]
                if there:
                    for e in range(n):
                        u[e] += below[under[at, j], e]
            err[:] = 0.0
            for j in range(k):  # the j-th is drawn from those left, by what those before it add
                total, top = 0.0, u.max()
                for e in range(n):
                    p[e] = math.exp(u[e] - top)
                    total += p[e]
                for e in range(n):
                    here[j, e] = -p[e] / total
                e = ids[at, j]
                here[j, e] += 1.0
                err += here[j]
                u[e] = -np.inf
                for f in range(n):
                    u[f] += beside[e, f]
            for j in range(k - 1):  # the j-th added to all after it
                for f in range(n):
                    p[f] = 0.0
                for later in range(j + 1, k):
                    p += here[later]
                _step(beside, beside_g, ids[at, j], p, rate, shrink)
            for e in range(n):
                base_g[e] += err[e] * err[e]
                base[e] += rate * err[e] / math.sqrt(base_g[e])
            for i in range(c):
                g = 0.0
                for e in range(n):
                    g += err[e] * told[e, i]
                w_g[i] += g * g
                w[i] += rate * g / math.sqrt(w_g[i])
            for j in range(k):
                if known:
                    _step(after, after_g, ids[at - 1, j], err, rate, shrink)
                if there:
                    _step(below, below_g, under[at, j], err, rate, shrink)
            for i in range(c):
                for e in range(n):
                    uses[e, i] *= HALVES[i]
                for j in range(k):
                    uses[ids[at, j], i] += 1.0
                seen[i] = HALVES[i] * seen[i] + 1.0


@compiled(nogil=True)
def _step(
    pairs: np.ndarray, squares: np.ndarray, i: int, err: np.ndarray, rate: float, shrink: float
) -> None:  # pragma: no cover
    for e in range(len(err)):
        g = err[e] - shrink * pairs[i, e]
        squares[i, e] += g * g
        pairs[i, e] += rate * g / math.sqrt(squares[i, e])


@compiled(nogil=True)
def pair_counts(a: np.ndarray, b: np.ndarray, n: int, out: np.ndarray) -> None:  # pragma: no cover
    """Add to ``out`` int64 [N, N] how often i of a row of ``a`` and j of the same row of ``b`` stand
    together; rows with a missing choice (-1 first) are left out."""
    t, k = a.shape
    for at in range(t):
        if a[at, 0] < 0 or b[at, 0] < 0:
            continue
        for i in range(k):
            for j in range(k):
                out[a[at, i], b[at, j]] += 1
