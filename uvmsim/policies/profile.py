"""What a profile trace teaches: how often each expert is used, and what follows it."""

from __future__ import annotations

import numpy as np

from traces.jit import compiled
from uvmsim.workload import Workload


def learn(w: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each expert, int64 [n_total], and by event the transitions to the next layer's experts,
    int32 [n_layers, n_experts, n_experts] (the last layer's go to the next pass's first)."""
    uses = np.bincount(w.ids, weights=w.counts, minlength=w.n_layers * w.n_experts).astype(np.int64)
    return uses, _transitions(w.ids, w.event_lo, w.event_layer, w.n_layers, w.n_experts)


@compiled(nogil=True)
def _transitions(ids, event_lo, event_layer, n_layers, n_experts):
    counts = np.zeros((n_layers, n_experts, n_experts), np.int32)
    for i in range(len(event_layer) - 1):
        layer = event_layer[i]
        if (layer + 1) % n_layers != event_layer[i + 1]:
            continue
        for a in range(event_lo[i], event_lo[i + 1]):
            for b in range(event_lo[i + 1], event_lo[i + 2]):
                counts[layer, ids[a] % n_experts, ids[b] % n_experts] += 1
    return counts
