"""Small traces for tests, and slow, obvious statistics to compare with."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from traces.files.schema import DECODE, RoutingMeta
from traces.models.info import ModelInfo
from traces.routing import RoutingTrace


def make_meta(n_layers: int, n_experts: int, k: int, **kw: Any) -> RoutingMeta:
    model = ModelInfo("toy", n_layers, tuple(range(n_layers)), n_experts, k)
    return RoutingMeta(model, **kw)


def decode_trace(sequences: list[np.ndarray], n_experts: int, **kw: Any) -> RoutingTrace:
    """A decode trace, one step a token, from arrays [tokens, layers, k]."""
    ids = np.concatenate(sequences).astype(np.int16)
    n, n_layers, k = ids.shape
    seq = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    pos = np.concatenate([np.arange(len(s)) for s in sequences])

    def rows(x: np.ndarray, dtype: type) -> np.ndarray:
        return np.repeat(x, n_layers).astype(dtype)

    columns = {
        "seq": rows(seq, np.int32),
        "pos": rows(pos, np.int32),
        "step": rows(np.arange(n), np.int32),
        "phase": np.full(n * n_layers, DECODE, np.uint8),
        "layer": np.tile(np.arange(n_layers), n).astype(np.int16),
        "experts": ids.reshape(-1, k),
    }
    return RoutingTrace(columns, make_meta(n_layers, n_experts, k, **kw))


def random_ids(rng: np.random.Generator, t: int, n_layers: int, n: int, k: int) -> np.ndarray:
    return np.argsort(rng.random((t, n_layers, n)), axis=2)[:, :, :k].astype(np.int16)


def sets_of(sequence: np.ndarray, layer: int) -> list[set[int] | None]:
    return [set(row.tolist()) if row[0] >= 0 else None for row in sequence[:, layer]]


def naive_overlap(sequences: list[np.ndarray], lag: int) -> list[float | None]:
    k, out = sequences[0].shape[2], []
    for layer in range(sequences[0].shape[1]):
        shares = []
        for s in sequences:
            x = sets_of(s, layer)
            for t in range(lag, len(x)):
                a, b = x[t - lag], x[t]
                if a is not None and b is not None:
                    shares.append(len(a & b) / k)
        out.append(sum(shares) / len(shares) if shares else None)
    return out


def naive_window(sequences: list[np.ndarray], w: int) -> list[float] | None:
    if all(len(s) < w for s in sequences):
        return None
    out = []
    for layer in range(sequences[0].shape[1]):
        sizes = []
        for s in sequences:
            x = sets_of(s, layer)
            for t in range(0, len(x) - w + 1, w):
                part = [y for y in x[t : t + w] if y is not None]
                if len(part) == w:
                    sizes.append(len(set().union(*part)))
        out.append(sum(sizes) / len(sizes) if sizes else float("nan"))
    return out


def naive_intervals(sequences: list[np.ndarray]) -> tuple[Counter[int], int]:
    """Intervals of reuse with their counts, and the number of first uses."""
    intervals: Counter[int] = Counter()
    first = 0
    for s in sequences:
        for layer in range(s.shape[1]):
            last: dict[int, int] = {}
            for t, experts in enumerate(sets_of(s, layer)):
                for e in experts or ():
                    if e in last:
                        intervals[t - last[e]] += 1
                    else:
                        first += 1
                    last[e] = t
    return intervals, first


def naive_lru_hits(sequences: list[np.ndarray], slots: int) -> int:
    hits = 0
    for s in sequences:
        for layer in range(s.shape[1]):
            pool: list[int] = []  # least recently used first
            for row in s[:, layer].tolist():
                row = [e for e in row if e >= 0]
                hits += sum(e in pool for e in row)
                pool = [e for e in pool if e not in row]
                keep = max(slots - len(row), 0)
                pool = pool[len(pool) - keep :] if keep < len(pool) else pool
                pool += sorted(row)
    return hits
