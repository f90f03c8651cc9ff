"""What llama-bench runs (llama.cpp tools/llama-bench/llama-bench.cpp, build 7099).

``pp N``: one warm-up prefill of N tokens, then ``r`` timed ones; ``tg N``: one warm-up token, then
``r`` times N tokens one by one. Token ids are uniformly random, the model's own output is ignored, the
KV cache is cleared before each repetition, prompts go through in micro-batches of 512.

Routing. Random tokens have no text and no memory: each draws its experts anew (Gumbel top-k, see
`traces.synth.generate`) from a fixed popularity of each layer, whose logarithm is Gaussian with a
standard deviation the model's description names, one for prefill and one for decode. A recorded trace's
popularity can take its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.errors import InputError
from traces.files.schema import DECODE, PREFILL
from traces.models.info import ModelInfo
from traces.routing import RoutingTrace
from traces.synth.generate import SynthModel, independent
from traces.synth.whole import UBATCH, Skeleton, build, measured_logits
from uvmsim.machine.model import Model
from uvmsim.workload import Workload, build_workload

MOST, MOST_TOKENS = 131_072, 1_000_000
"""Tokens of a test, and of a run: beyond, a run outgrows memory."""
DEFAULT_SIGMA = (1.0, 1.0)
"""Assumed where a model's description names none; results say so."""


@dataclass(frozen=True)
class Bench:
    """The forward passes of a llama-bench run."""

    workload: Workload
    trace: RoutingTrace
    tests: tuple[str, ...]
    """``pp512``, ``tg128``, in order."""
    step_test: np.ndarray
    """int32 [S]: index of the test."""
    step_rep: np.ndarray
    """int32 [S]: repetition, -1 for the warm-up."""
    tokens: tuple[int, ...]
    """Tokens a repetition of each test."""
    context: int
    """Longest context of a test."""


def bench(
    model: Model, prompt: int, generate: int, reps: int, seed: int,
    like: RoutingTrace | None = None, drop_rows: bool = False,
) -> Bench:  # fmt: skip
    """The run of ``llama-bench -p prompt -n generate -r reps`` (0 leaves a test out).

    ``drop_rows``: a prompt's tokens but the last have no routing in the model's last block, as in
    llama.cpp; False: all rows are there, which is what the constants of paging were fitted with."""
    if prompt < 0 or generate < 0:
        raise InputError(f"-p {prompt} -n {generate}: a number of tokens cannot be negative")
    if prompt + generate == 0:
        raise InputError("-p 0 -n 0: give a number of tokens above 0 for one test")
    for option, value, most in (("-p", prompt, MOST), ("-n", generate, MOST), ("-r", reps, 1000)):
        if value > most:
            raise InputError(f"{option} {value}: at most {most:,}")
    if (prompt + generate) * (reps + 1) > MOST_TOKENS:
        raise InputError(
            f"-p {prompt} -n {generate} -r {reps}: that is more than {MOST_TOKENS:,} tokens; fewer "
            "repetitions tell as much"
        )
    if reps < 1:
        raise InputError(f"-r {reps}: at least one repetition")
    tests = [(f"pp{prompt}", prompt, PREFILL)] * bool(prompt)
    tests += [(f"tg{generate}", generate, DECODE)] * bool(generate)
    parts: dict[str, list[np.ndarray]] = {k: [] for k in ("seq", "pos", "step", "phase")}
    step_test, step_rep = [], []
    sequence = steps = 0
    for i, (_, n, phase) in enumerate(tests):
        for rep in range(-1, reps):
            length = 1 if rep < 0 and phase == DECODE else n
            width = UBATCH if phase == PREFILL else 1
            own = np.arange(length) // width
            parts["seq"].append(np.full(length, sequence))
            parts["pos"].append(np.arange(length))
            parts["step"].append(steps + own)
            parts["phase"].append(np.full(length, phase))
            count = int(own[-1]) + 1
            step_test += [i] * count
            step_rep += [rep] * count
            steps += count
            sequence += 1
    skeleton = Skeleton(*(np.concatenate(parts[k]) for k in ("seq", "pos", "step", "phase")))
    prefills = (reps + 1) * bool(prompt)
    trace = build(
        skeleton, routing(model, prefills, seed, like), info_of(model), model.moe_layers, seed,
        {"llama_bench": ",".join(t for t, _, _ in tests)},
    )  # fmt: skip
    if drop_rows:
        _drop_unused_rows(trace, model)
    return Bench(
        build_workload(trace), trace, tuple(t for t, _, _ in tests),
        np.array(step_test, np.int32), np.array(step_rep, np.int32),
        tuple(n for _, n, _ in tests), max(prompt, generate),
    )  # fmt: skip


def _drop_unused_rows(trace: RoutingTrace, model: Model) -> None:
    """Take the routing from rows that llama.cpp never computes: llama-bench asks for the logits of a
    prompt's last token, so in the model's last block all others are dropped after attention
    (``inp_out_ids``), before the router. One row left is below what llama.cpp offloads to the GPU (32),
    so that nothing of that block's experts is copied."""
    if not model.moe_layers or model.moe_layers[-1] != model.n_layers - 1:
        return
    pos, seq = np.asarray(trace.pos), np.asarray(trace.seq)
    last = np.zeros(int(seq.max()) + 1, pos.dtype)
    np.maximum.at(last, seq, pos)
    unused = (
        (np.asarray(trace.layer) == model.moe_layers[-1])
        & (np.asarray(trace.phase) == PREFILL)
        & (pos != last[seq])
    )
    trace.columns["experts"][unused] = -1
    trace.columns["weights"][unused] = np.nan


@dataclass(frozen=True)
class TwoPhases(SynthModel):
    """Sequences before ``prefills`` draw from one popularity, the others from another."""

    decode: SynthModel = None  # type: ignore[assignment]
    prefills: int = 0

    def generate(self, bounds: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        cut = self.prefills
        parts = []
        if cut:
            parts.append(super().generate(bounds[: cut + 1], seed))
        if cut < len(bounds) - 1:
            parts.append(self.decode.generate(bounds[cut:] - bounds[cut], seed + 1))
        ids, weights = (np.concatenate(x) for x in zip(*parts, strict=True))
        return ids, weights


def routing(model: Model, prefills: int, seed: int, like: RoutingTrace | None) -> SynthModel:
    """The generator of random tokens' routing; the first ``prefills`` sequences are prefills."""
    if like is not None:
        model.check_fits(like.meta)
        return independent(measured_logits(like), model.top_k)
    prefill, decode = model.routing_sigma or DEFAULT_SIGMA
    shape = (len(model.moe_layers), model.n_experts)
    popularity = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    first, second = (independent(s * popularity, model.top_k) for s in (prefill, decode))
    return TwoPhases(first.logits, first.share, first.top_k, second, prefills)


def info_of(model: Model) -> ModelInfo:
    """The description a synthetic trace carries."""
    return ModelInfo(
        name=model.name, architecture=model.architecture, n_layers=model.n_layers,
        moe_layers=model.moe_layers, n_experts=model.n_experts, top_k=model.top_k,
        source="synthetic: llama-bench's random tokens",
    )  # fmt: skip
