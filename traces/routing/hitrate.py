"""Hit rates of per-layer LRU and LFU pools: a small yardstick for judging synthetic traces.

A layer's k experts are one event: hits are judged before it, and none of them makes room for
another. Pools start empty in every sequence. The simulator proper is elsewhere; this one exists so
that a trace can be judged with nothing but the trace package.
"""

from __future__ import annotations

import numpy as np

from traces.jit import compiled


def slots_of(share: float, n_experts: int, k: int) -> int:
    """Slots a layer at a share of its experts; never below k."""
    return max(k, round(share * n_experts))


def lru_hits(ids: np.ndarray, bounds: np.ndarray, n_experts: int, slots: int) -> int:
    """Hits of least-recently-used pools; ``ids`` [T, L, k] grouped into ``bounds`` sequences."""
    return int(_hits(ids.astype(np.int64), bounds, n_experts, slots, False))


def lfu_hits(ids: np.ndarray, bounds: np.ndarray, n_experts: int, slots: int) -> int:
    """Hits of least-frequently-used pools (counts of the sequence so far, kept for experts that
    left; ties: the least recently used goes)."""
    return int(_hits(ids.astype(np.int64), bounds, n_experts, slots, True))


@compiled(nogil=True)
def _hits(
    ids: np.ndarray, bounds: np.ndarray, n_experts: int, slots: int, frequency: bool
) -> int:  # pragma: no cover
    hits = 0
    n_layers, k = ids.shape[1], ids.shape[2]
    last = np.empty(n_experts, np.int64)
    count = np.empty(n_experts, np.int64)
    inside = np.empty(n_experts, np.bool_)
    event = np.full(n_experts, -1, np.int64)
    stamp = 0
    for layer in range(n_layers):
        for s in range(len(bounds) - 1):
            last[:], count[:], inside[:] = -1, 0, False
            used = 0
            for t in range(bounds[s], bounds[s + 1]):
                stamp += 1
                for j in range(k):
                    e = ids[t, layer, j]
                    if 0 <= e < n_experts:
                        event[e] = stamp
                        count[e] += 1
                        last[e] = stamp
                        if inside[e]:
                            hits += 1
                for j in range(k):
                    e = ids[t, layer, j]
                    if not 0 <= e < n_experts or inside[e]:
                        continue
                    if used == slots:
                        victim = -1
                        for x in range(n_experts):
                            if not inside[x] or event[x] == stamp:
                                continue
                            if victim < 0:
                                victim = x
                            elif frequency and count[x] != count[victim]:
                                if count[x] < count[victim]:
                                    victim = x
                            elif last[x] < last[victim]:
                                victim = x
                        inside[victim] = False
                        used -= 1
                    inside[e] = True
                    used += 1
    return hits
