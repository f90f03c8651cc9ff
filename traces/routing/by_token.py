"""A routing trace as one array [tokens, layers, k], the form that statistics want."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.routing.rows import Rows


@dataclass(frozen=True)
class DenseRouting:
    """Routing by token. Tokens keep the order in which they ran.

    ``ids``: int16 [T, L, k], -1 where missing; ``weights``: float32 [T, L, k] (NaN where missing)
    or None; ``seq``, ``pos``, ``step``: int32 [T]; ``phase``: uint8 [T]; ``token``: int32 [T] or
    None; ``layers``: the layer ids of axis 1; ``n_experts``: experts a layer.
    """

    ids: np.ndarray
    weights: np.ndarray | None
    seq: np.ndarray
    pos: np.ndarray
    step: np.ndarray
    phase: np.ndarray
    token: np.ndarray | None
    layers: tuple[int, ...]
    n_experts: int

    def by_sequence(self) -> DenseRouting:
        """The same tokens with every sequence in one piece (order inside it kept)."""
        if not (np.diff(self.seq) < 0).any():
            return self
        return self.take(np.argsort(self.seq, kind="stable"))

    def take(self, tokens: np.ndarray) -> DenseRouting:
        """Some tokens, by index or mask."""
        return DenseRouting(
            self.ids[tokens],
            None if self.weights is None else self.weights[tokens],
            self.seq[tokens],
            self.pos[tokens],
            self.step[tokens],
            self.phase[tokens],
            None if self.token is None else self.token[tokens],
            self.layers,
            self.n_experts,
        )

    def sequence_starts(self) -> np.ndarray:
        """int64 [sequences + 1]: bounds of the runs of equal ``seq``, for tokens `by_sequence`."""
        return run_bounds(self.seq)


def run_bounds(*keys: np.ndarray) -> np.ndarray:
    """Bounds of the runs over which all keys stay the same: int64 [runs + 1]."""
    n = len(keys[0])
    if not n:
        return np.zeros(1, np.int64)
    change = np.zeros(n - 1, bool)
    for k in keys:
        change |= k[1:] != k[:-1]
    return np.concatenate(([0], np.flatnonzero(change) + 1, [n])).astype(np.int64)


def token_index(
    step: np.ndarray, seq: np.ndarray, pos: np.ndarray, layer: np.ndarray
) -> np.ndarray:
    """int64 [rows]: the token of each row, numbered in order of first appearance.

    A token is a (step, sequence, position). Where every layer of a step lists the same tokens in
    the same order, as `traces.files.schema` asks, the number follows from the place in the run; any
    other trace is grouped by value.
    """
    n = len(step)
    if not n:
        return np.zeros(0, np.int64)
    runs = run_bounds(step, layer)
    length = np.diff(runs)
    run_step = step[runs[:-1]]
    first = np.ones(len(length), bool)
    first[1:] = run_step[1:] != run_step[:-1]
    group = np.cumsum(first) - 1
    tokens = length[first]
    if (length == tokens[group]).all() and (np.diff(run_step) >= 0).all():
        base = np.concatenate(([0], np.cumsum(tokens)[:-1]))
        place = np.arange(n) - np.repeat(runs[:-1], length)
        head = np.repeat(runs[:-1][first][group], length) + place
        if (seq[head] == seq).all() and (pos[head] == pos).all():
            return (np.repeat(base[group], length) + place).astype(np.int64)
    key = np.stack([step, seq, pos], axis=1).astype(np.int64)
    _, where, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    rank = np.empty(len(where), np.int64)
    rank[np.argsort(where, kind="stable")] = np.arange(len(where))
    return rank[inverse.reshape(-1)]


def dense_routing(t: Rows) -> DenseRouting:
    """Build the dense form; a row given twice keeps its last value (`check` reports it)."""
    token, n, n_layers, k = t.token_index, t.n_tokens, len(t.layers), t.top_k
    slot = np.searchsorted(np.asarray(t.layers, np.int64), t.layer)
    ids = np.full((n, n_layers, k), -1, np.int16)
    ids[token, slot] = t.experts
    weights = None
    if t.weights is not None:
        weights = np.full((n, n_layers, k), np.nan, np.float32)
        weights[token, slot] = t.weights

    def of_token(column: np.ndarray) -> np.ndarray:
        out = np.empty(n, column.dtype)
        out[token] = column
        return out

    return DenseRouting(
        ids,
        weights,
        of_token(t.seq),
        of_token(t.pos),
        of_token(t.step),
        of_token(t.phase),
        None if t.token is None else of_token(t.token),
        t.layers,
        t.n_experts,
    )
