"""Compiled inner loops of the synthetic generator (see `traces.synth.generate` for the model)."""

from __future__ import annotations

import math

import numpy as np

from traces.jit import compiled

EDGE, CELLS = 6.0, 8192
STEP = 2 * EDGE / CELLS


def _exact_gumbel(x: float) -> float:
    if x > 0.0:
        return -math.log(-math.log1p(-0.5 * math.erfc(x / math.sqrt(2.0))))
    return -math.log(-math.log(0.5 * math.erfc(-x / math.sqrt(2.0))))


# Nearly all the time would go into erfc and log; linear interpolation is right to 1e-6.
_TABLE = np.array([_exact_gumbel(-EDGE + i * STEP) for i in range(CELLS + 2)])


@compiled(nogil=True)
def gumbel(x: float) -> float:  # pragma: no cover
    """A standard normal turned into a standard Gumbel with the same rank.

    Beyond 6 standard deviations (once in 10**9 draws) the value at 6 stands in.
    """
    at = (min(max(x, -EDGE), EDGE) + EDGE) / STEP
    i = int(at)
    return _TABLE[i] + (at - i) * (_TABLE[i + 1] - _TABLE[i])


@compiled(nogil=True)
def _top(z: np.ndarray, k: int, out: np.ndarray) -> None:  # pragma: no cover
    """Indices of the k largest values, largest first, by insertion."""
    n = 0
    for e in range(len(z)):
        if n == k and z[e] <= z[out[k - 1]]:
            continue
        j = n if n < k else k - 1
        while j > 0 and z[out[j - 1]] < z[e]:
            if j < k:
                out[j] = out[j - 1]
            j -= 1
        out[j] = e
        if n < k:
            n += 1


@compiled(nogil=True)
def generate_layer(
    logits: np.ndarray,
    k: int,
    bounds: np.ndarray,
    decay: np.ndarray,
    share: np.ndarray,
    rng: np.random.Generator,
    ids: np.ndarray,
    perturbed: np.ndarray,
) -> None:  # pragma: no cover
    """Fill ``ids`` [T, k] and ``perturbed`` [T, k] (their scores) of one layer.

    ``logits`` [N] log popularity; ``decay`` [C] step-to-step correlation of each component and
    ``share`` [C] its part of the variance (the rest is drawn anew each token); components start
    anew in each sequence of ``bounds``.
    """
    n, c = len(logits), len(decay)
    state = np.empty((n, c))
    fresh = np.sqrt(1.0 - decay * decay)
    scale = np.sqrt(share)
    white = math.sqrt(max(0.0, 1.0 - share.sum()))
    z = np.empty(n)
    chosen = np.empty(k, np.int64)
    for s in range(len(bounds) - 1):
        for e in range(n):
            for i in range(c):
                state[e, i] = rng.standard_normal()
        for t in range(bounds[s], bounds[s + 1]):
            for e in range(n):
                x = white * rng.standard_normal()
                for i in range(c):
                    if t > bounds[s] and decay[i] < 1.0:
                        state[e, i] = decay[i] * state[e, i] + fresh[i] * rng.standard_normal()
                    x += scale[i] * state[e, i]
                z[e] = logits[e] + gumbel(x)
            _top(z, k, chosen)
            for j in range(k):
                ids[t, j] = chosen[j]
                perturbed[t, j] = z[chosen[j]]


@compiled(nogil=True)
def overlap_curve(
    logits: np.ndarray, k: int, grid: np.ndarray, pairs: int, rng: np.random.Generator
) -> np.ndarray:  # pragma: no cover
    """Mean overlap (share of k) of two tokens whose noise has correlation r, for r in ``grid``."""
    n = len(logits)
    out = np.zeros(len(grid))
    a, b = np.empty(n), np.empty(n)
    za, zb = np.empty(n), np.empty(n)
    ia, ib = np.empty(k, np.int64), np.empty(k, np.int64)
    inside = np.zeros(n, np.bool_)
    for _ in range(pairs):
        for e in range(n):
            a[e], b[e] = rng.standard_normal(), rng.standard_normal()
            za[e] = logits[e] + gumbel(a[e])
        _top(za, k, ia)
        for j in range(k):
            inside[ia[j]] = True
        for g in range(len(grid)):
            r = grid[g]
            q = math.sqrt(1.0 - r * r)
            for e in range(n):
                zb[e] = logits[e] + gumbel(r * a[e] + q * b[e])
            _top(zb, k, ib)
            for j in range(k):
                if inside[ib[j]]:
                    out[g] += 1.0
        for j in range(k):
            inside[ia[j]] = False
    return out / (pairs * k)
