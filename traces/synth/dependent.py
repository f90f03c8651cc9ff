"""Synthetic routing whose choices depend on each other: on the token before, on the layer before.

The model is that of `traces.synth.generate`, popularity and persistent noise, and three kinds of
pair weights. What was chosen already adds to the scores of all experts: ``after[i, e]`` if the token
before chose i in this layer, ``below[i, e]`` if this token chose i in the layer before,
``beside[i, e]`` once it has chosen i right here (experts are chosen one after the other). Weights
are centred, so that popularity stays what it was. A sequence's own taste, the part of the noise that
lasts as long as it, drifts from sequence to sequence with correlation ``kept``.
`traces.synth.dependent_fit` fits it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.routing.by_token import DenseRouting
from traces.synth.generate import DECAY, SynthModel, describe_model
from traces.synth.pair_kernels import generate_dependent, pair_counts


@dataclass(frozen=True)
class DependentModel:
    """A generator: ``logits`` [L, N], ``share`` [L, len(TIMES)] as `SynthModel`; ``after``, ``below``,
    ``beside`` float32 [L, N, N]; ``kept``, 0 to 1."""

    logits: np.ndarray
    share: np.ndarray
    after: np.ndarray
    below: np.ndarray
    beside: np.ndarray
    kept: float
    top_k: int

    def generate(self, bounds: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Routing of sequences with the given ``bounds`` [S + 1]: ids int16 [T, L, k] in rank order,
        weights float32 [T, L, k] (softmax of the chosen scores, sorted). One seed, one routing."""
        n_layers, t, k = len(self.logits), int(bounds[-1]), self.top_k
        ids = np.empty((t, n_layers, k), np.int16)
        weights = np.empty((t, n_layers, k), np.float32)
        under = np.empty((0, k), np.int64)
        for layer, child in enumerate(np.random.SeedSequence(seed).spawn(n_layers)):
            out, z = np.empty((t, k), np.int64), np.empty((t, k))
            generate_dependent(
                self.logits[layer], k, bounds, DECAY, self.share[layer], self.kept,
                self.after[layer], self.below[layer], self.beside[layer], under,
                np.random.Generator(np.random.PCG64(child)), out, z,
            )  # fmt: skip
            # What came later may have been pulled up by what came first: weights fall all the same.
            z = np.sort(z, axis=1)[:, ::-1]
            e = np.exp(z - z[:, :1])
            ids[:, layer], weights[:, layer] = out, e / e.sum(axis=1, keepdims=True)
            under = out
        return ids, weights

    def describe(self) -> dict[str, Any]:
        """What goes into a synthetic trace's metadata: means over layers."""
        told = describe_model(SynthModel(self.logits, self.share, self.top_k))
        return told | {
            "pair_weights": {
                name: round(float(getattr(self, name).std(axis=(1, 2)).mean()), 4)
                for name in ("after", "below", "beside")
            },
            "kept_to_next_sequence": round(self.kept, 4),
        }


def information(d: DenseRouting) -> dict[str, np.ndarray]:
    """Mutual information of choices, nats: float64 [L] each.

    One of a token's k experts in a layer, drawn evenly, and one of: ``token_before``, those of the
    token before in the sequence (pairs of an expert with itself left out); ``layer_before``, those of
    the same token one layer down (NaN in the first). What chance alone gives, with so many tokens, is
    taken off: the same of a trace whose tokens are in random order.
    """
    d = d.by_sequence()
    bounds = d.sequence_starts()
    n, (t, layers, _) = d.n_experts, d.ids.shape
    follows = np.ones(t, bool)
    follows[bounds[:-1]] = False
    now = np.flatnonzero(follows)
    mixed = np.random.Generator(np.random.PCG64(0)).permutation(t)
    told = {"token_before": np.full(layers, np.nan), "layer_before": np.full(layers, np.nan)}
    for layer in range(layers):
        ids = d.ids[:, layer]
        if len(now):
            real = _information(ids[now - 1], ids[now], n, own=False)
            chance = _information(ids[mixed][now - 1], ids[now], n, own=False)
            told["token_before"][layer] = real - chance
        if layer:
            under = d.ids[:, layer - 1]
            real, chance = _information(under, ids, n), _information(under[mixed], ids, n)
            told["layer_before"][layer] = real - chance
    return told


def _information(a: np.ndarray, b: np.ndarray, n: int, own: bool = True) -> float:
    counts = np.zeros((n, n), np.int64)
    pair_counts(a, b, n, counts)
    joint = counts / max(counts.sum(), 1)
    even = joint.sum(axis=1)[:, None] * joint.sum(axis=0)[None, :]
    seen = counts > 0
    if not own:
        seen &= ~np.eye(n, dtype=bool)
    return float((joint[seen] * np.log(joint[seen] / even[seen])).sum())
