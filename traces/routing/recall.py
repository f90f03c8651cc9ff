"""How good are guesses of a layer's experts, made before its router ran?

Recall at m: of the experts that a token chose in a layer, the share that is among the first m
guesses. Each layer counts alike, rows that miss the choice or the guess do not count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from traces.routing import RoutingTrace
from traces.routing.by_token import run_bounds

AHEAD = {"next1": 1, "next2": 2, "pre": 0}
"""MoE layers between the row that a predictor's guess stands in and the layer that it is about."""


def recall(t: RoutingTrace, tokens: np.ndarray | None = None) -> dict[str, dict[str, Any]]:
    """Recall of each predictor that the trace has, as plain JSON types, by its name.

    ``at_k``, ``at_2k``: recall with as many guesses as there are experts to choose, and with twice as
    many, means over layers; ``new_at_2k``: the same for experts that the sequence's token before did
    not use in that layer, which are those a cache is likely to miss; ``at_2k_by_layer``: {layer
    guessed about: recall}; ``guesses``: rows counted. None where there is nothing to count.
    ``tokens``: bool [`n_tokens`], the tokens to count; all where left out.
    """
    if not t.predictions:
        return {}
    slot = np.searchsorted(np.asarray(t.layers, np.int64), t.layer)
    before = _token_before(t)
    counted = np.ones(t.n_tokens, bool) if tokens is None else tokens
    return {name: _of(t, name, slot, before, counted) for name in t.predictions}


def _of(
    t: RoutingTrace, name: str, slot: np.ndarray, before: np.ndarray, counted: np.ndarray
) -> dict[str, Any]:
    chosen, k, guess = t.dense.ids, t.top_k, t.predictions[name].ids
    at_k, at_2k, new, rows = [], {}, [], 0
    for about in range(AHEAD[name], len(t.layers)):
        here = np.flatnonzero(slot == about - AHEAD[name])
        guesses = np.full((t.n_tokens, guess.shape[1]), -1, np.int16)
        guesses[t.token_index[here]] = guess[here]
        use = counted & (chosen[:, about] >= 0).all(axis=1) & (guesses >= 0).all(axis=1)
        if not use.any():
            continue
        which = np.flatnonzero(use)
        mine, theirs = chosen[which, about], guesses[which]
        found = mine[:, :, None] == theirs[:, None, :]  # [tokens, k, 2k]
        in_2k = found.any(axis=2)
        at_k.append(float(found[:, :, :k].any(axis=2).mean()))
        at_2k[str(t.layers[about])] = float(in_2k.mean())
        rows += len(which)
        known = (before[which] >= 0) & (chosen[before[which], about] >= 0).all(axis=1)
        fresh = ~(mine[:, :, None] == chosen[before[which], about][:, None, :]).any(axis=2)
        fresh &= known[:, None]
        if fresh.any():
            new.append(float(in_2k[fresh].mean()))
    return {
        "at_k": _mean(at_k),
        "at_2k": _mean(list(at_2k.values())),
        "new_at_2k": _mean(new),
        "at_2k_by_layer": at_2k,
        "guesses": rows,
    }


def _token_before(t: RoutingTrace) -> np.ndarray:
    """int64 [tokens]: the token that ran before it in its sequence, -1 for the first."""
    order = np.argsort(t.dense.seq, kind="stable")
    before = np.full(t.n_tokens, -1, np.int64)
    before[order[1:]] = order[:-1]
    before[order[run_bounds(t.dense.seq[order])[:-1]]] = -1
    return before


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
