"""Prefetch what the last forward pass used in the next layer."""

from typing import Any, ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.base import Prefetch


class State(NamedTuple):
    """last: int32 [layers, n], dense ids of the last event of each layer, -1 past the end."""

    last: np.ndarray


class PreviousToken(Prefetch):
    """Next layer's experts of the previous token (the first `n` of a micro-batch)."""

    name = "previous-token"
    source = "token-to-token reuse; overlap 0.26-0.44 on public traces"
    n: int = 0
    """Experts to ask for; 0 = top-k."""
    search: ClassVar[dict[str, Any]] = {"n": (1, 16, "log")}

    def limit(self, ctx):
        return min(self.n or ctx.top_k, ctx.n_experts)

    def state(self, ctx):
        return State(np.full((ctx.n_layers, self.limit(ctx)), -1, np.int32))

    @staticmethod
    def on_event(s, pool, ev):
        for j in range(s.last.shape[1]):
            s.last[ev.layer, j] = ev.experts[j] if j < len(ev.experts) else -1

    @staticmethod
    def prefetch(s, pool, ev, out):
        row = s.last[(ev.layer + 1) % pool.n_layers]
        found = 0
        for j in range(len(row)):
            if row[j] >= 0:
                out[found] = row[j]
                found += 1
        return found
