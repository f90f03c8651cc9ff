"""Whole synthetic traces: like a real one, from a few numbers, as llama-bench runs, shuffled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from traces.errors import InputError
from traces.files.schema import DECODE, PREFILL, RoutingMeta
from traces.models.info import ModelInfo
from traces.routing import RoutingTrace
from traces.routing.by_token import DenseRouting
from traces.routing.columns import LISTS, missing_value
from traces.routing.stats import expert_counts
from traces.synth.dependent_fit import fit_dependent
from traces.synth.generate import (
    fit,
    independent,
    popularity_logits,
    reach,
    with_overlap,
    zipf_logits,
)

UBATCH = 512
"""llama.cpp's default micro-batch (``n_ubatch``): a longer prompt goes through in several steps."""


@dataclass(frozen=True)
class Skeleton:
    """The tokens of a trace without their routing, in execution order: int [T] each."""

    seq: np.ndarray
    pos: np.ndarray
    step: np.ndarray
    phase: np.ndarray


class Generator(Protocol):
    """What makes routing."""

    def generate(self, bounds: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int16 [T, L, k] and weights float32 [T, L, k] of sequences with ``bounds`` [S + 1]."""
        ...

    def describe(self) -> dict[str, Any]:
        """What goes into the metadata."""
        ...


def like(
    t: RoutingTrace, seed: int, tokens: int | None = None, dependent: bool = False
) -> RoutingTrace:
    """A trace fitted to ``t``: the same sequences, steps and phases, repeated or cut to
    ``tokens``. ``dependent``: choices depend on the token and the layer before."""
    d = t.dense
    ranked = t.meta.ids_order == "ranked"
    model: Generator = fit_dependent(d, seed, ranked) if dependent else fit(d, seed)
    skeleton = Skeleton(d.seq, d.pos, d.step, d.phase)
    if tokens is not None:
        skeleton = _repeat(skeleton, tokens)
    extra: dict[str, Any] = {"like": str(t.path.name if t.path else ""), "like_sha256": t.sha256}
    if dependent:
        extra["dependent"] = True
    return build(skeleton, model, replace(t.meta.model, source="synthetic"), t.layers, seed, extra)


def from_numbers(
    model: ModelInfo,
    seed: int,
    *,
    zipf: float,
    stickiness: float,
    topic: float,
    tokens: int,
    sequence: int,
) -> RoutingTrace:
    """A decode trace from a popularity slope and two overlaps (lag 1, and within a sequence).

    Raises `InputError` where the overlaps cannot be had with that popularity.
    """
    k = model.top_k
    logits = zipf_logits(len(model.moe_layers), model.n_experts, zipf, seed)
    low, high = reach(logits, k, seed)
    if not topic <= stickiness <= high + 0.005 or stickiness < low - 0.005 or topic < 0:
        raise InputError(
            f"--stickiness {stickiness} --topic {topic}: need topic <= stickiness, and stickiness "
            f"between {low:.3f} (unrelated tokens at --zipf {zipf}) and {high:.3f}"
        )
    length = np.full(-(-tokens // sequence), sequence)
    length[-1] -= length.sum() - tokens
    seq = np.repeat(np.arange(len(length)), length)
    pos = np.arange(tokens) - np.repeat(np.cumsum(length) - length, length)
    skeleton = Skeleton(seq, pos, np.arange(tokens), np.full(tokens, DECODE))
    synth = with_overlap(logits, k, stickiness, topic, seed)
    extra = {"zipf": zipf, "stickiness": stickiness, "topic": topic}
    return build(skeleton, synth, model, model.moe_layers, seed, extra)


def llama_bench(
    tests: str, model: ModelInfo, layers: Sequence[int], logits: np.ndarray, seed: int
) -> RoutingTrace:
    """The tests of llama-bench (``pp512,tg128``): uniformly random token ids.

    Such tokens have no text and no memory: each draws from the popularity for itself. ``ppN`` is a
    prefill of N tokens in micro-batches of 512, ``tgN`` a decode of N single tokens; each test is a
    sequence of its own, as llama-bench clears the context between them.
    """
    seq, pos, step, phase = [], [], [], []
    steps = 0
    for i, test in enumerate(tests.split(",")):
        match = re.fullmatch(r"\s*(pp|tg)([1-9]\d*)\s*", test)
        if not match:
            raise InputError(f"--llama-bench {tests}: {test!r} is no test; use e.g. pp512,tg128")
        n = int(match[2])
        width = UBATCH if match[1] == "pp" else 1
        seq.append(np.full(n, i))
        pos.append(np.arange(n))
        step.append(steps + np.arange(n) // width)
        phase.append(np.full(n, PREFILL if match[1] == "pp" else DECODE))
        steps = int(step[-1][-1]) + 1
    skeleton = Skeleton(*(np.concatenate(x) for x in (seq, pos, step, phase)))
    synth = independent(logits, model.top_k)
    return build(skeleton, synth, model, layers, seed, {"llama_bench": tests})


def measured_logits(t: RoutingTrace) -> np.ndarray:
    """The popularity of a real trace, for `llama_bench`: float64 [L, N]."""
    return popularity_logits(expert_counts(t.dense), t.top_k)


def build(
    skeleton: Skeleton,
    synth: Generator,
    model: ModelInfo,
    layers: Sequence[int],
    seed: int,
    extra: dict[str, Any],
) -> RoutingTrace:
    """Generate the routing of a skeleton's tokens."""
    order = np.argsort(skeleton.seq, kind="stable")
    grouped = skeleton.seq[order]
    bounds = np.concatenate(([0], np.flatnonzero(np.diff(grouped)) + 1, [len(grouped)]))
    ids, weights = synth.generate(bounds, seed)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    n_layers = ids.shape[1]
    # Rows in execution order: step, then layer, then token.
    token = np.repeat(np.arange(len(order)), n_layers)
    layer = np.tile(np.arange(n_layers), len(order))
    rows = np.lexsort((token, layer, skeleton.step[token]))
    token, layer = token[rows], layer[rows]
    columns: dict[str, np.ndarray] = {
        "seq": skeleton.seq[token].astype(np.int32),
        "pos": skeleton.pos[token].astype(np.int32),
        "step": skeleton.step[token].astype(np.int32),
        "phase": skeleton.phase[token].astype(np.uint8),
        "layer": np.asarray(layers, np.int16)[layer],
        "experts": ids[back[token], layer],
        "weights": weights[back[token], layer],
    }
    about = {"synthetic": extra | {"seed": seed} | synth.describe()}
    return RoutingTrace(columns, RoutingMeta(model, "ranked", extra=about))


def shuffle(t: RoutingTrace, seed: int) -> RoutingTrace:
    """The control: the routing of the tokens of each sequence (and phase) in random order.

    Popularity, per sequence too, stays exactly as it is; time order is gone.
    """
    d = t.dense
    rng = np.random.Generator(np.random.PCG64(seed))
    group = d.seq.astype(np.int64) * 2 + d.phase
    home = np.argsort(group, kind="stable")
    dealt = np.lexsort((rng.random(len(group)), group))
    source = np.empty_like(home)
    source[home] = dealt
    slot = np.searchsorted(np.asarray(t.layers), t.layer)
    row_of = np.full((t.n_tokens, len(t.layers)), -1, np.int64)
    row_of[t.token_index, slot] = np.arange(t.n_rows)
    rows = row_of[source[t.token_index], slot]
    columns = dict(t.columns)
    for name in LISTS:
        if name in columns:
            columns[name] = columns[name][rows]
            columns[name][rows < 0] = missing_value(name)
    if t.token is not None and d.token is not None:
        columns["token"] = d.token[source[t.token_index]]
    extra = dict(t.meta.extra) | {"shuffled": {"seed": seed, "sha256": t.sha256}}
    return RoutingTrace(columns, replace(t.meta, extra=extra))


def _repeat(s: Skeleton, tokens: int) -> Skeleton:
    """The skeleton over and over, sequences and steps numbered on, cut to so many tokens."""
    n = len(s.seq)
    times = -(-tokens // n)
    seqs, steps = int(s.seq.max()) + 1, int(s.step.max()) + 1
    lap = np.repeat(np.arange(times), n)

    def tile(x: np.ndarray, per_lap: int = 0) -> np.ndarray:
        return (np.tile(x.astype(np.int64), times) + lap * per_lap)[:tokens]

    return Skeleton(tile(s.seq, seqs), tile(s.pos), tile(s.step, steps), tile(s.phase))


def compare_with(real: DenseRouting, made: DenseRouting) -> dict[str, float]:
    """How far a synthetic trace is from its model: largest absolute differences by table."""
    from traces.routing.stats import statistics

    a, b = statistics(real), statistics(made)

    def gap(x: dict[str, float], y: dict[str, float], part: float = 1.0) -> float:
        return max((abs(x[k] - y[k]) / part for k in x if k in y and x[k] is not None), default=0.0)

    return {
        "overlap": gap(a["overlap"], b["overlap"]),
        "window_distinct_share": gap(
            a["window_distinct"], b["window_distinct"], float(real.n_experts)
        ),
        "reuse": gap(a["reuse"]["cumulative"], b["reuse"]["cumulative"]),
        "skew": gap(a["skew"]["top"], b["skew"]["top"]),
        "lru": abs(a["hit_rate"]["lru"] - b["hit_rate"]["lru"]),
        "lfu": abs(a["hit_rate"]["lfu"] - b["hit_rate"]["lfu"]),
    }
