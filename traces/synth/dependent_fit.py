"""Fits the dependent generator to a trace.

Pair weights are learned from the trace (the ranks of the chosen by their scores, Plackett-Luce). Then
traces are generated and measured, and knobs of each layer are turned so that they come near the real
one: popularity by how often each expert was chosen, its spread by the Gini coefficient, the noise by
the overlap at each lag, the pair weights by the mutual information of the pairs they speak of. The
round that came nearest is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from traces.errors import InputError
from traces.routing.by_token import DenseRouting
from traces.routing.stats import expert_counts, expert_sets, overlap
from traces.synth.dependent import DependentModel, information
from traces.synth.generate import (
    LAGS,
    curves_of,
    gini_of,
    popularity_logits,
    shares_of,
    some_sequences,
)
from traces.synth.pair_kernels import learn_pairs

EPOCHS, RATE, SHRINK = 10, 0.3, 0.01
ROUNDS, COPIES = 24, 4
FIT_ROWS = 250_000
"""(token, layer) rows generated in a round of fitting, at least where `COPIES` are enough."""
LEAST_BITS, MOST_GAIN = 1e-3, 4.0
"""Mutual information below which there is nothing to turn by; what learned weights are multiplied by at
most."""
MOST_BYTES = 1 << 30
"""Of pair weights."""


def fit_dependent(d: DenseRouting, seed: int = 0, ranked: bool = True) -> DependentModel:
    """Fit the generator to a trace; deterministic for a seed. See the module's text for how.

    ``ranked``: ids are in the order of choice; else they are taken in a random one. Raises `InputError`
    where pair weights would take more than 1 GiB.
    """
    d = d.by_sequence()
    size = 3 * 4 * d.ids.shape[1] * d.n_experts**2
    if size > MOST_BYTES:
        raise InputError(
            f"{d.ids.shape[1]} layers of {d.n_experts} experts: pair weights take {size / 2**30:.1f} "
            "GiB, and 1 GiB is the most; leave out --dependent"
        )
    real = _Goals(d)
    knobs = _Knobs(d, real, seed, ranked)
    best, least = knobs.model(), np.inf
    for round_ in range(ROUNDS):
        model = knobs.model()
        made = [
            replace(
                real.tokens, ids=model.generate(real.bounds, seed + 1 + round_ * COPIES + copy)[0]
            )
            for copy in range(real.copies)
        ]
        slower = 1.0 if round_ < 2 * ROUNDS // 3 else 0.4
        off = knobs.turn([_Goals(x) for x in made], [expert_counts(x) for x in made], slower)
        if off < least:
            best, least = model, off
    return best


class _Goals:
    """What the fit looks at, of a trace: float64 [L] each."""

    def __init__(self, d: DenseRouting):
        layers, k = d.ids.shape[1:]
        sets = expert_sets(d)
        self.bounds = some_sequences(sets.bounds, max(64, FIT_ROWS // layers))
        self.tokens = d.take(np.arange(self.bounds[-1]))
        self.copies = int(np.clip(FIT_ROWS // (self.bounds[-1] * layers), 1, COPIES))
        lags = [lag for lag in LAGS if (np.diff(self.bounds) > 2 * lag).any()]
        self.overlap = overlap(sets, k, lags)
        self.gini = gini_of(expert_counts(self.tokens))
        self.bits = information(d)


class _Knobs:
    """What is turned from round to round."""

    def __init__(self, d: DenseRouting, real: _Goals, seed: int, ranked: bool):
        self.real, self.k = real, d.ids.shape[2]
        self.base = popularity_logits(expert_counts(d), self.k)
        self.logits, self.sharpness = self.base.copy(), np.ones(len(self.base))
        self.pairs = _pairs(d, seed, ranked)
        self.gain = {name: np.ones(len(self.base)) for name in real.bits}
        self.target = {lag: x.copy() for lag, x in real.overlap.items()}
        # In a single text, a topic of its length cannot be told from popularity.
        self.longest = np.inf if len(real.bounds) > 2 else real.bounds[-1] / 4
        self.kept = kept_between(d)
        self.curves = curves_of(self.base, self.k, seed)

    def model(self) -> DependentModel:
        """The generator as the knobs stand."""
        share = shares_of(self.curves, self.target, self.longest)
        gain = {name: x.astype(np.float32)[:, None, None] for name, x in self.gain.items()}
        return DependentModel(
            self.logits.copy(), share, self.pairs.after * gain["token_before"],
            self.pairs.below * gain["layer_before"], self.pairs.beside, self.kept, self.k,
        )  # fmt: skip

    def turn(self, made: list[_Goals], counts: list[np.ndarray], far: float) -> float:
        """Turn all ``far`` (1: as far as seems right) by what was measured of generated traces;
        returns how far off these were."""
        real = self.real

        def mean(values: list[np.ndarray]) -> np.ndarray:
            return np.nan_to_num(np.mean(values, axis=0))

        gini = mean([x.gini for x in made])
        missing = {
            lag: np.nan_to_num(want - mean([x.overlap[lag] for x in made]))
            for lag, want in real.overlap.items()
        }
        bits = {name: mean([x.bits[name] for x in made]) for name in self.gain}
        self.sharpness *= np.clip(real.gini / np.maximum(gini, 1e-6), 0.5, 2.0) ** (0.5 * far)
        self.sharpness = np.clip(self.sharpness, 0.1, 2.0)
        got = popularity_logits(np.sum(counts, axis=0), self.k)
        self.logits = self.logits + 0.7 * far * (self.base * self.sharpness[:, None] - got)
        for lag in self.target:
            self.target[lag] = np.clip(self.target[lag] + 0.5 * far * missing[lag], 0.0, 1.0)
        for name, want in real.bits.items():
            want = np.maximum(np.nan_to_num(want), LEAST_BITS)
            step = np.clip(want / np.maximum(bits[name], LEAST_BITS), 0.25, 4.0)
            self.gain[name] = np.clip(self.gain[name] * step ** (0.3 * far), 0.1, MOST_GAIN)
        off = [np.abs(real.gini - gini).mean(), *(np.abs(x).mean() for x in missing.values())]
        off += [np.abs(np.nan_to_num(real.bits[n]) - bits[n]).mean() for n in bits]
        return float(np.mean(off))


@dataclass(frozen=True)
class _Pairs:
    """Pair weights as learned, centred: float32 [L, N, N] each."""

    after: np.ndarray
    below: np.ndarray
    beside: np.ndarray


def _pairs(d: DenseRouting, seed: int, ranked: bool) -> _Pairs:
    n, (t, layers, k) = d.n_experts, d.ids.shape
    all_ids = d.ids
    if not ranked:
        rng = np.random.Generator(np.random.PCG64([seed, 2]))
        all_ids = np.take_along_axis(d.ids, rng.random(d.ids.shape).argsort(axis=2), axis=2)
    first = np.zeros(t, bool)
    first[d.sequence_starts()[:-1]] = True
    kept = [np.zeros((layers, n, n), np.float32) for _ in range(3)]
    for layer in range(layers):
        ids = all_ids[:, layer].astype(np.int64)
        under = all_ids[:, layer - 1].astype(np.int64) if layer else np.empty((0, k), np.int64)
        found = [np.zeros((n, n)) for _ in range(3)]
        learn_pairs(ids, under, first, n, EPOCHS, RATE, SHRINK, *found)
        for out, weights, source in zip(kept, found, (ids, under, ids), strict=True):
            often = np.bincount(source[source >= 0], minlength=n)
            out[layer] = weights - (often / max(often.sum(), 1)) @ weights
    return _Pairs(*kept)


def kept_between(d: DenseRouting) -> float:
    """Correlation of a sequence's taste (log share of each expert, less that of the whole trace) with
    the next sequence's, as a share of what two halves of one sequence have: 0 to 1."""
    bounds = d.sequence_starts()
    if len(bounds) < 4:
        return 0.0
    taste = [_taste(d.take(np.arange(lo, hi))) for lo, hi in pairwise(bounds)]
    mean = np.mean(taste, axis=0)
    apart = [x - mean for x in taste]
    next_ = np.mean([(a * b).mean() for a, b in pairwise(apart)])
    halves = []
    for lo, hi in pairwise(bounds):
        mid = (lo + hi) // 2
        if lo < mid < hi:
            a, b = (_taste(d.take(np.arange(*x))) - mean for x in ((lo, mid), (mid, hi)))
            halves.append((a * b).mean())
    within = float(np.mean(halves)) if halves else 0.0
    return float(np.clip(next_ / within, 0.0, 0.99)) if within > 0 else 0.0


def _taste(d: DenseRouting) -> np.ndarray:
    """float64 [L, N]: log share of the choices of each layer."""
    counts = expert_counts(d)
    return np.log((counts + 1.0) / (counts.sum(axis=1, keepdims=True) + counts.shape[1]))
