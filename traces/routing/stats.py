"""Locality of a routing trace, in the tables that the literature compares.

All tables treat a token's experts in a layer as a set, look at each layer by itself, and never
cross from one sequence to the next. Means over layers weigh every layer alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.routing.by_token import DenseRouting

LAGS = (1, 2, 4, 8, 16, 32)
WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
REUSE = (1, 2, 4, 8, 16, 32, 64, 128)
SHARES = (0.10, 0.20, 0.25, 0.50)
BATCHES = (1, 2, 4, 8, 16)
RESIDENT = 0.25


@dataclass(frozen=True)
class ExpertSets:
    """Expert sets as bit masks: uint64 [T, L, words], tokens grouped by sequence.

    ``known``: bool [T, L], False where the routing is missing; ``bounds``: int64 [sequences + 1].
    """

    bits: np.ndarray
    known: np.ndarray
    bounds: np.ndarray

    @property
    def place(self) -> np.ndarray:
        """int64 [T]: index of each token in its sequence."""
        length = np.diff(self.bounds)
        return np.arange(len(self.bits)) - np.repeat(self.bounds[:-1], length)


def expert_sets(d: DenseRouting) -> ExpertSets:
    """Bit masks of a trace; ``d`` must be grouped by sequence. Ids out of range are dropped."""
    ids = d.ids
    words = -(-d.n_experts // 64)
    bits = np.zeros((*ids.shape[:2], words), np.uint64)
    for j in range(ids.shape[2]):
        column = ids[:, :, j]
        good = (column >= 0) & (column < d.n_experts)
        mask = np.uint64(1) << (column & 63).astype(np.uint64)
        for w in range(words):
            bits[:, :, w] |= np.where(good & (column >> 6 == w), mask, np.uint64(0))
    return ExpertSets(bits, np.any(ids >= 0, axis=2), d.sequence_starts())


def _size(bits: np.ndarray) -> np.ndarray:
    return np.bitwise_count(bits).sum(axis=-1, dtype=np.int64)


def overlap(s: ExpertSets, k: int, lags: Sequence[int] = LAGS) -> dict[int, np.ndarray]:
    """Share of top-k that tokens t and t+d have in common, by lag d: float64 [L], NaN where no
    pair exists. Pairs with a missing side do not count."""
    place = s.place
    out = {}
    for d in lags:
        pair = place[d:] >= d
        both = s.known[d:][pair] & s.known[: len(s.known) - d][pair]
        common = _size(s.bits[d:][pair] & s.bits[: len(s.bits) - d][pair])
        n = both.sum(axis=0)
        total = (common * both).sum(axis=0)
        out[d] = np.divide(total, n * k, out=np.full(n.shape, np.nan), where=n > 0)
    return out


def window_distinct(s: ExpertSets, windows: Sequence[int] = WINDOWS) -> dict[int, np.ndarray]:
    """Distinct experts a layer in non-overlapping windows of W consecutive tokens: mean over the
    full windows, float64 [L]; windows longer than every sequence are left out, and so are those
    in which a routing is missing (NaN where none is left).

    W must be powers of two: a window of 2W is the union of two windows of W.
    """
    bits, known, place = s.bits, s.known, s.place
    out, w = {}, 1
    while len(bits) and w <= max(windows):
        if w in windows:
            out[w] = _mean_size(bits, known)
        pair = np.flatnonzero((place[:-1] % 2 == 0) & (place[1:] == place[:-1] + 1))
        bits, known = bits[pair] | bits[pair + 1], known[pair] & known[pair + 1]
        place, w = place[pair] // 2, 2 * w
    return out


def _mean_size(bits: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean size of the known sets, by layer: float64 [L], NaN where there are none."""
    n = known.sum(axis=0)
    total = np.where(known, _size(bits), 0).sum(axis=0)
    return np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)


def reuse_intervals(
    d: DenseRouting, bounds: np.ndarray, limits: Sequence[int] = REUSE
) -> dict[str, Any]:
    """Tokens since the same expert of the same layer was last used in the sequence.

    Returns ``cumulative`` {limit: share of all accesses with an interval of at most so many
    tokens} and ``first`` (share of first uses in a sequence).
    """
    n_seq = len(bounds) - 1
    seq = np.repeat(np.arange(n_seq), np.diff(bounds))
    t, n = np.arange(len(seq)), max(len(seq), 1)
    total = first = 0
    counts = np.zeros(len(limits), np.int64)
    for layer in range(d.ids.shape[1]):
        ids = d.ids[:, layer, :].astype(np.int64)
        group = seq[:, None] * d.n_experts + ids
        # One number orders by (sequence, expert) and then by time.
        key = (group * n + t[:, None])[(ids >= 0) & (ids < d.n_experts)]
        key = np.unique(key)
        gap = np.diff(key)
        again = key[1:] // n == key[:-1] // n
        total += len(key)
        first += len(key) - int(again.sum())
        counts += [int((again & (gap <= limit)).sum()) for limit in limits]
    share = counts / max(total, 1)
    return {
        "cumulative": dict(zip(limits, share.tolist(), strict=True)),
        "first": first / max(total, 1),
        "accesses": total,
    }


def expert_counts(d: DenseRouting) -> np.ndarray:
    """int64 [L, n_experts]: how often each expert was chosen."""
    n_layers = d.ids.shape[1]
    key = d.ids.astype(np.int64) + np.arange(n_layers)[None, :, None] * d.n_experts
    good = (d.ids >= 0) & (d.ids < d.n_experts)
    return np.bincount(key[good], minlength=n_layers * d.n_experts).reshape(n_layers, d.n_experts)


def skew(counts: np.ndarray, shares: Sequence[float] = SHARES) -> dict[str, Any]:
    """Skew of expert popularity, means over layers; ``counts`` is [L, N].

    ``top``: share of accesses that go to the hottest part of the experts (rounded to whole
    experts, at least one); ``entropy``: entropy / log N (1 = uniform); ``gini``: 0 = uniform;
    ``zipf``: slope of log count over log rank, top half, sign turned; ``never``: experts never
    chosen. Layers without any access are left out.
    """
    counts = counts[counts.sum(axis=1) > 0]
    if not len(counts):
        return {"top": {s: float("nan") for s in shares}} | {
            k: float("nan") for k in ("entropy", "gini", "zipf", "never")
        }
    n = counts.shape[1]
    c = -np.sort(-counts, axis=1).astype(np.float64)
    p = c / c.sum(axis=1, keepdims=True)
    top = {s: float(p[:, : max(1, round(s * n))].sum(axis=1).mean()) for s in shares}
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    entropy = -(p * logs).sum(axis=1) / np.log(n) if n > 1 else np.ones(len(p))
    rank = np.arange(1, n + 1)
    # Gini of values in descending order.
    gini = (n + 1 - 2 * (p * rank).sum(axis=1)) / n
    return {
        "top": top,
        "entropy": float(entropy.mean()),
        "gini": float(gini.mean()),
        "zipf": float(np.mean([_slope(row) for row in c])),
        "never": float((counts == 0).mean()),
    }


def _slope(c: np.ndarray) -> float:
    half = c[: max(2, len(c) // 2)]
    half = half[half > 0]
    if len(half) < 2:
        return float("nan")
    x, y = np.log(np.arange(1, len(half) + 1)), np.log(half)
    x -= x.mean()
    return float(-(x * y).sum() / (x * x).sum())


def batch_union(s: ExpertSets, batches: Sequence[int] = BATCHES) -> dict[int, np.ndarray]:
    """Distinct experts a layer when B sequences decode together: float64 [L], mean over steps.

    Sequences are taken B at a time in order; step i holds the i-th token of each of them, as long
    as all last; where a routing is missing it does not count. Batches
    wider than the number of sequences are left out.
    """
    starts, length = s.bounds[:-1], np.diff(s.bounds)
    out = {}
    for b in batches:
        unions, all_known = [], []
        for g in range(0, len(starts) - b + 1, b):
            steps = int(length[g : g + b].min())
            at = starts[g : g + b, None] + np.arange(steps)
            unions.append(np.bitwise_or.reduce(s.bits[at], axis=0))
            all_known.append(s.known[at].all(axis=0))
        if unions:
            out[b] = _mean_size(np.concatenate(unions), np.concatenate(all_known))
    return out


def step_union(d: DenseRouting) -> list[dict[str, Any]]:
    """Distinct experts a layer in the steps that hold several tokens (prefill micro-batches).

    One entry a power of two of the step's size: ``tokens`` (smallest and largest step),
    ``steps``, ``distinct`` (mean over steps and layers). Layers of a step with missing rows do not
    count.
    """
    order = np.argsort(d.step, kind="stable")
    _, size = np.unique(d.step[order], return_counts=True)
    many = size > 1
    if not many.any():
        return []
    rows = order[np.repeat(many, size)]
    sets = expert_sets(d.take(rows))
    at = np.concatenate(([0], np.cumsum(size[many])[:-1]))
    union = np.bitwise_or.reduceat(sets.bits, at, axis=0)
    known = np.logical_and.reduceat(sets.known, at, axis=0)
    width = np.floor(np.log2(size[many])).astype(int)
    out = []
    for w in np.unique(width):
        of, n = width == w, size[many][width == w]
        distinct = _size(union[of])[known[of]]
        out.append(
            {
                "tokens": [int(n.min()), int(n.max())],
                "steps": int(of.sum()),
                "distinct": float(distinct.mean()) if len(distinct) else 0.0,
            }
        )
    return out


def statistics(d: DenseRouting, *, hit_rates: bool = True) -> dict[str, Any]:
    """Every table of a trace, as plain JSON types.

    ``hit_rates`` adds the per-layer LRU and LFU hit rates at a quarter of the experts, the pool
    emptied before each sequence (`traces.routing.hitrate`).
    """
    d = d.by_sequence()
    s, k = expert_sets(d), d.ids.shape[2]
    over = overlap(s, k)
    out: dict[str, Any] = {
        "tokens": len(d.ids),
        "sequences": len(s.bounds) - 1,
        "layers": list(d.layers),
        "n_experts": d.n_experts,
        "top_k": k,
        "random": k / d.n_experts,
        "overlap": {str(lag): _mean(v) for lag, v in over.items()},
        "overlap_by_layer": [_number(x) for x in over[1]],
        "window_distinct": {str(w): _mean(v) for w, v in window_distinct(s).items()},
        "reuse": reuse_intervals(d, s.bounds),
        "skew": skew(expert_counts(d)),
        "batch_union": {str(b): _mean(v) for b, v in batch_union(s).items()},
        "step_union": step_union(d),
    }
    out["reuse"]["cumulative"] = {str(a): b for a, b in out["reuse"]["cumulative"].items()}
    out["skew"]["top"] = {f"{a:.0%}": b for a, b in out["skew"]["top"].items()}
    if hit_rates:
        from traces.routing.hitrate import lfu_hits, lru_hits, slots_of

        slots = slots_of(RESIDENT, d.n_experts, k)
        accesses = max(int((d.ids >= 0).sum()), 1)
        out["hit_rate"] = {
            "slots": slots,
            "lru": lru_hits(d.ids, s.bounds, d.n_experts, slots) / accesses,
            "lfu": lfu_hits(d.ids, s.bounds, d.n_experts, slots) / accesses,
        }
    return out


def _mean(v: np.ndarray) -> float | None:
    v = v[~np.isnan(v)]
    return float(v.mean()) if len(v) else None


def _number(x: float) -> float | None:
    return None if np.isnan(x) else float(x)
