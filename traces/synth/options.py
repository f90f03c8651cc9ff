"""From the options of ``trace synth`` to a trace."""

from __future__ import annotations

import numpy as np

from traces.errors import InputError
from traces.models.info import ModelInfo
from traces.models.known import KNOWN, find
from traces.routing import RoutingTrace, open_routing
from traces.routing.bounds import MAX_EXPERTS, MAX_LAYERS
from traces.synth.generate import zipf_logits
from traces.synth.whole import from_numbers, like, llama_bench, measured_logits, shuffle

ZIPF, STICKINESS, TOPIC, TOKENS, SEQUENCE = 0.6, 0.4, 0.25, 4096, 512


def make(
    *,
    like: str | None,
    shuffle: str | None,
    bench: str | None,
    shape: str | None,
    layers: int | None,
    experts: int | None,
    top_k: int | None,
    zipf: float | None,
    stickiness: float | None,
    topic: float | None,
    tokens: int | None,
    sequence: int | None,
    seed: int,
    dependent: bool = False,
) -> tuple[RoutingTrace, RoutingTrace | None]:
    """The trace asked for, and the real one it is to be compared with (or None).

    Raises `InputError` where options contradict each other.
    """
    given: dict[str, object] = {
        "--shape": shape,
        "--layers": layers,
        "--experts": experts,
        "--top-k": top_k,
        "--zipf": zipf,
        "--stickiness": stickiness,
        "--topic": topic,
        "--tokens": tokens,
        "--sequence": sequence,
        "--llama-bench": bench,
        "--like": like,
    }
    if dependent and (not like or bench):
        raise InputError(
            "--dependent is fitted to a trace; give --like TRACE, without --llama-bench"
        )
    if shuffle:
        _refuse(given, set(given), "--shuffle copies a trace as it is")
    elif like:
        free = {"--like", "--llama-bench"} | ({"--tokens"} if not bench else set())
        _refuse(given, set(given) - free, "--like takes it from the trace")
    elif bench:
        _refuse(
            given,
            {"--stickiness", "--topic", "--tokens", "--sequence"},
            "--llama-bench has random tokens, and sets their number",
        )
    if shuffle:
        real = open_routing(shuffle)
        return _shuffle(real, seed), real
    if like:
        real = open_routing(like)
        if bench:
            logits = measured_logits(real)
            return llama_bench(bench, real.meta.model, real.layers, logits, seed), real
        return _like(real, seed, tokens, dependent), real
    model = _shape(shape, layers, experts, top_k)
    slope = ZIPF if zipf is None else zipf
    if bench:
        logits = zipf_logits(len(model.moe_layers), model.n_experts, slope, seed)
        return llama_bench(bench, model, model.moe_layers, logits, seed), None
    made = from_numbers(
        model,
        seed,
        zipf=slope,
        stickiness=STICKINESS if stickiness is None else stickiness,
        topic=TOPIC if topic is None else topic,
        tokens=tokens or TOKENS,
        sequence=sequence or SEQUENCE,
    )
    return made, None


_like, _shuffle = like, shuffle


def _refuse(given: dict[str, object], names: set[str], why: str) -> None:
    for name in sorted(names):
        if given[name] is not None:
            raise InputError(f"{name}: {why}; leave it out")


def _shape(
    shape: str | None, layers: int | None, experts: int | None, top_k: int | None
) -> ModelInfo:
    if shape:
        if layers or experts or top_k:
            raise InputError("--shape and --layers/--experts/--top-k: give one or the other")
        name = find(shape)
        if name is None:
            raise InputError(f"--shape {shape}: unknown; known are {', '.join(KNOWN)}")
        s = KNOWN[name]
        return ModelInfo(name, s.n_layers, s.moe_layers, s.n_experts, s.top_k, source="synthetic")
    if not (layers and experts and top_k):
        raise InputError(
            "nothing to make: give --like TRACE, --shuffle TRACE, --shape MODEL, or all of "
            "--layers, --experts and --top-k"
        )
    for option, n, most in (("--experts", experts, MAX_EXPERTS), ("--layers", layers, MAX_LAYERS)):
        if n > most:
            raise InputError(f"{option} {n:,}: a trace holds at most {most:,}")
    if top_k > experts:
        raise InputError(f"--top-k {top_k}: more than --experts {experts}; lower it")
    every = tuple(int(x) for x in np.arange(layers))
    return ModelInfo("synthetic", layers, every, experts, top_k, source="synthetic")
