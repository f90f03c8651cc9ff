"""Choose the next token from logits; ours, so that a seed means the same on every build."""

from __future__ import annotations

import numpy as np


class Sampler:
    """Samples for one sequence. ``temperature`` 0 is greedy; ``top_k`` 0 keeps all tokens."""

    def __init__(self, *, seed: int, seq: int, temperature: float = 0.8, top_k: int = 40) -> None:
        self._rng = np.random.default_rng([seed, seq])
        self._temperature, self._top_k = temperature, top_k

    def next(self, logits: np.ndarray, banned: np.ndarray | None = None) -> int:
        """A token id from float32 logits [n_vocab]; ``banned`` ids are never chosen."""
        x = logits.astype(np.float64)
        if banned is not None:
            x[banned] = -np.inf
        if self._temperature == 0:
            return int(x.argmax())
        ids = np.arange(len(x))
        if 0 < self._top_k < len(x):
            ids = np.sort(np.argpartition(x, -self._top_k)[-self._top_k :])
        p = np.exp((x[ids] - x.max()) / self._temperature)
        cumulative = np.cumsum(p)
        at = np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right")
        return int(ids[min(int(at), len(ids) - 1)])
