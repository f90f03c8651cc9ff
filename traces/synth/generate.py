"""Synthetic routing with measured skew *and* time locality.

The model. In each layer, expert e of a token gets the score ``log p_e + g``, with g standard
Gumbel noise, and the k best are chosen: sampling without replacement with weights p (Gumbel
top-k, Kool et al. 2019), so p sets the skew. The noise of one expert is a Gaussian process in time
pushed through the Gumbel quantile function: at any one token it is exactly Gumbel, hence skew and
locality are set independently of each other. Its correlation R(d) between tokens d apart is a
mixture of exponential decays, from the previous token (time constant 0.6 tokens) to the whole
sequence (a constant: the topic); what is left is drawn anew at every token.

Fitting. R(d) is read off the measured overlap at lag d, by inverting the simulated curve of overlap
against correlation; then the mixture is fitted to R. p comes from the measured popularity,
flattened until a synthetic trace of the same sequences shows the measured Gini coefficient: part
of a short trace's skew is topic, not taste.

Not modelled: dependence between layers. On a synthetic trace a predictor that looks at the layer
before learns nothing but popularity; `traces.synth.dependent` has that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from traces.routing.by_token import DenseRouting
from traces.routing.stats import expert_counts, expert_sets, overlap, skew
from traces.synth.kernels import generate_layer, overlap_curve

TIMES = (0.6, 2.0, 5.0, 12.0, 40.0, 150.0, np.inf)
"""Time constants of the components, tokens."""
DECAY = np.array([np.exp(-1.0 / x) for x in TIMES])
LAGS = (1, 2, 4, 8, 16, 32, 64, 128)
GRID = np.linspace(0.0, 0.98, 13)
FIT_ROWS = 250_000
"""(token, layer) rows generated in a round of fitting."""
FIT_COPIES = 12
"""How often a short trace is generated in a round, to average its chance away."""
FIT_DRAWS, FINAL_DRAWS = 20_000, 64_000
"""Expert scores drawn for an overlap curve while fitting, and in the last round."""
ROUNDS = 5


@dataclass(frozen=True)
class SynthModel:
    """A generator: ``logits`` [L, N] log popularity, ``share`` [L, len(TIMES)] parts of the
    variance that persist with each time constant."""

    logits: np.ndarray
    share: np.ndarray
    top_k: int

    def generate(self, bounds: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Routing of sequences with the given ``bounds`` [S + 1].

        Returns ids int16 [T, L, k] in rank order and router weights float32 [T, L, k] (softmax of
        the chosen scores). The same seed gives the same routing.
        """
        n_layers, t = len(self.logits), int(bounds[-1])
        ids = np.empty((t, n_layers, self.top_k), np.int16)
        weights = np.empty((t, n_layers, self.top_k), np.float32)
        for layer, child in enumerate(np.random.SeedSequence(seed).spawn(n_layers)):
            out = np.empty((t, self.top_k), np.int64)
            z = np.empty((t, self.top_k))
            generate_layer(
                self.logits[layer],
                self.top_k,
                bounds,
                DECAY,
                self.share[layer],
                np.random.Generator(np.random.PCG64(child)),
                out,
                z,
            )
            e = np.exp(z - z[:, :1])
            ids[:, layer], weights[:, layer] = out, e / e.sum(axis=1, keepdims=True)
        return ids, weights

    def describe(self) -> dict[str, Any]:
        """`describe_model` of this."""
        return describe_model(self)


def zipf_logits(n_layers: int, n_experts: int, slope: float, seed: int) -> np.ndarray:
    """Log popularity rank**-slope, ranks dealt anew in each layer: float64 [L, N]."""
    rng = np.random.Generator(np.random.PCG64(seed))
    logs = -slope * np.log(np.arange(1, n_experts + 1))
    return np.stack([rng.permutation(logs) for _ in range(n_layers)])


def popularity_logits(counts: np.ndarray, k: int) -> np.ndarray:
    """Log weights under which Gumbel top-k chooses experts as often as counted: [L, N].

    Uses the exponential race: an expert is among the k first with probability 1 - exp(-p T).
    Experts never seen are given half a count.
    """
    tokens = np.maximum(counts.sum(axis=1, keepdims=True) / k, 1.0)
    share = np.clip(np.maximum(counts, 0.5) / tokens, 1e-9, 1.0 - 1e-3)
    logits = np.log(-np.log1p(-share))
    return logits - logits.mean(axis=1, keepdims=True)


def independent(logits: np.ndarray, k: int) -> SynthModel:
    """Every token draws anew from the popularity: routing of uniformly random token ids."""
    return SynthModel(logits, np.zeros((len(logits), len(TIMES))), k)


def with_overlap(logits: np.ndarray, k: int, near: float, far: float, seed: int) -> SynthModel:
    """A generator whose overlap is ``near`` at lag 1 and ``far`` over the length of a sequence.

    Targets outside what the popularity allows are brought to its nearest edge (see `reach`).
    """
    share = np.zeros((len(logits), len(TIMES)))
    slow, fast = len(TIMES) - 1, (0, 1, 2)
    parts = np.array([0.4, 0.35, 0.25])
    at_lag_one = float((parts * DECAY[list(fast)]).sum())
    for layer, curve in enumerate(curves_of(logits, k, seed)):
        r_far = _invert(curve, far)
        r_near = max(_invert(curve, near), r_far)
        share[layer, slow] = r_far
        share[layer, list(fast)] = parts * min((r_near - r_far) / at_lag_one, 1.0 - r_far)
    return SynthModel(logits, share, k)


def reach(logits: np.ndarray, k: int, seed: int) -> tuple[float, float]:
    """Overlap of unrelated tokens, and the largest that can be asked for (means over layers)."""
    curves = np.stack(curves_of(logits, k, seed))
    return float(curves[:, 0].mean()), float(curves[:, -1].mean())


def fit(d: DenseRouting, seed: int = 0) -> SynthModel:
    """Fit the generator to a trace; deterministic for a seed. See the module's text for how."""
    d = d.by_sequence()
    k = d.ids.shape[2]
    sets = expert_sets(d)
    measured = overlap(sets, k, [lag for lag in LAGS if (np.diff(sets.bounds) > 2 * lag).any()])
    base = popularity_logits(expert_counts(d), k)
    part = some_sequences(sets.bounds, max(64, FIT_ROWS // len(d.layers)))
    copies = int(np.clip(FIT_ROWS // (part[-1] * len(d.layers)), 1, FIT_COPIES))
    target = gini_of(expert_counts(d.take(np.arange(part[-1]))))
    # In a single text, a topic of its length cannot be told from popularity.
    longest = np.inf if len(sets.bounds) > 2 else part[-1] / 4
    sharpness = np.ones(len(base))
    for round_ in range(ROUNDS):
        logits = base * sharpness[:, None]
        last = round_ == ROUNDS - 1
        draws = FINAL_DRAWS if last else FIT_DRAWS
        model = SynthModel(logits, _shares(logits, k, measured, longest, seed, draws), k)
        if last:
            break
        got = np.zeros(len(base))
        for copy in range(copies):
            ids, _ = model.generate(part, seed + 1 + round_ * FIT_COPIES + copy)
            got += gini_of(expert_counts(replace(d, ids=ids))) / copies
        # Gini is about proportional to the spread of the logits; the mean damps sampling noise.
        ratio = target / np.maximum(got, 1e-6)
        sharpness = np.clip(sharpness * (ratio * ratio.mean()) ** 0.75, 0.02, 2.0)
    return model


def gini_of(counts: np.ndarray) -> np.ndarray:
    """Gini coefficient of each layer's counts [L, N]: float64 [L]."""
    return np.array([skew(c[None])["gini"] for c in counts])


def some_sequences(bounds: np.ndarray, tokens: int) -> np.ndarray:
    """The first sequences that hold about so many tokens, at least one; its bounds."""
    n = max(1, int(np.searchsorted(bounds, tokens, side="right")) - 1)
    part = bounds[: n + 1].copy()
    if n == 1:
        part[1] = min(part[1], max(tokens, 1))
    return part


def curves_of(logits: np.ndarray, k: int, seed: int, draws: int = FINAL_DRAWS) -> list[np.ndarray]:
    """Overlap against noise correlation (`GRID`) for each layer, made to rise."""
    pairs = int(np.clip(draws // logits.shape[1], 100, 2000))
    children = np.random.SeedSequence([seed, 1]).spawn(len(logits))
    out = []
    for row, child in zip(logits, children, strict=True):
        rng = np.random.Generator(np.random.PCG64(child))
        out.append(np.maximum.accumulate(overlap_curve(row, k, GRID, pairs, rng)))
    return out


def _invert(curve: np.ndarray, value: float) -> float:
    """Correlation at which the curve reaches ``value``; the ends where it never does."""
    return float(np.interp(value, curve + 1e-9 * np.arange(len(curve)), GRID))


def _shares(
    logits: np.ndarray,
    k: int,
    measured: dict[int, np.ndarray],
    longest: float,
    seed: int,
    draws: int,
) -> np.ndarray:
    """Parts of the variance per time constant that reproduce the measured overlaps: [L, C].

    Components that last more than ``longest`` tokens are left out.
    """
    return shares_of(curves_of(logits, k, seed, draws), measured, longest)


def shares_of(
    curves: list[np.ndarray], measured: dict[int, np.ndarray], longest: float
) -> np.ndarray:
    """As `_shares`, of curves that are there."""
    lags = np.array(list(measured))
    usable = np.array(TIMES) <= longest
    shape = DECAY[None, usable] ** lags[:, None]
    out = np.zeros((len(curves), len(TIMES)))
    for layer, curve in enumerate(curves):
        wanted = np.array([_invert(curve, float(measured[int(x)][layer])) for x in lags])
        seen = np.array([not np.isnan(measured[int(x)][layer]) for x in lags])
        if seen.any():
            out[layer, usable] = _mixture(shape[seen], wanted[seen])
    return out


def _mixture(shape: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares over parts that are not negative and sum to at most 1.

    Moves weight between two parts at a time, the pair that gains most first; the last part is the
    one drawn anew, which keeps the sum at 1.
    """
    s = np.concatenate([shape, np.zeros((len(shape), 1))], axis=1)
    x = np.zeros(s.shape[1])
    x[-1] = 1.0
    left = wanted.astype(np.float64).copy()
    gram = s.T @ s
    square = np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram + 1e-12
    for _ in range(300):
        pull = s.T @ left
        gain = pull[None, :] - pull[:, None]  # [from, to]
        step = np.clip(gain / square, 0.0, x[:, None])
        won = step * (2 * gain - step * square)
        i, j = divmod(int(won.argmax()), len(x))
        if won[i, j] < 1e-9:
            break
        x[i] -= step[i, j]
        x[j] += step[i, j]
        left -= step[i, j] * (s[:, j] - s[:, i])
    return x[:-1]


def describe_model(m: SynthModel) -> dict[str, Any]:
    """What goes into a synthetic trace's metadata: means over layers."""
    names = [("sequence" if np.isinf(t) else f"{t:g} tokens") for t in TIMES]
    shares = m.share.mean(axis=0)
    return {
        "persistence": {n: round(float(s), 4) for n, s in zip(names, shares, strict=True)},
        "drawn_anew": round(float(1.0 - shares.sum()), 4),
        "logit_spread": round(float(m.logits.std(axis=1).mean()), 4),
    }
