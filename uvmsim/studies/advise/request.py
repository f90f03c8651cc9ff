"""A request as forward passes: some decoding before it, its prompt in micro-batches, its answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from traces.files.schema import DECODE, PREFILL, RoutingMeta
from traces.models.info import ModelInfo
from traces.routing import RoutingTrace
from uvmsim.machine.model import Model
from uvmsim.studies.advise.routing import Routed
from uvmsim.workload import Workload, build_workload

FEW = 3
"""Full micro-batches that stand for all of a prompt's: the first, the last and those between."""
BRIEF_WARM, BRIEF = 8, 128
"""Decoded tokens of a short form, for what takes long to simulate and does not need a warm cache."""


@dataclass(frozen=True)
class Request:
    """Forward passes and what they count for in the whole request."""

    workload: Workload
    prompt: int
    generate: int
    prefill_weight: np.ndarray
    """float64 [S]: passes of the prompt that a step stands for."""
    decode_weight: np.ndarray
    """float64 [S]: generated tokens that a step stands for."""


def request(
    model: Model, r: Routed, prompt: int, generate: int, ubatch: int, brief: bool = False
) -> Request:
    """``prompt`` tokens in micro-batches of ``ubatch``, then ``generate`` one by one; ``brief``: fewer
    passes stand for the same."""
    if brief:
        r = replace(r, warm=r.warm[:BRIEF_WARM], decode=r.decode[:BRIEF])
    steps: list[tuple[np.ndarray, np.ndarray, int, float]] = [
        (r.warm[i : i + 1], np.array([prompt]), DECODE, 0.0) for i in range(len(r.warm))
    ]
    for start, width, passes in _batches(prompt, ubatch, 1 if brief else FEW):
        at = np.arange(start, start + width)
        steps.append((r.prompt[at % len(r.prompt)], at, PREFILL, passes))
    n = len(r.decode)
    where = prompt + (np.arange(n) * generate) // n
    steps += [(r.decode[i : i + 1], where[i : i + 1], DECODE, generate / n) for i in range(n)]
    weight = np.array([s[3] for s in steps])
    phase = np.array([s[2] for s in steps], np.uint8)
    return Request(
        _workload(model, steps, phase), prompt, generate,
        np.where(phase == PREFILL, weight, 0.0), np.where(phase == DECODE, weight, 0.0),
    )  # fmt: skip


def _batches(prompt: int, ubatch: int, few: int) -> list[tuple[int, int, float]]:
    """(first token, tokens, how many such there are): what a pass takes is linear in its position, so
    a few stand for all."""
    full, rest = divmod(prompt, ubatch)
    ends = [(full - 1) / 2] if few == 1 else [0, (full - 1) / 2, full - 1]
    chosen = list(range(full)) if full <= few else ends
    made = [(int(i * ubatch), ubatch, full / len(chosen)) for i in chosen]
    return made + ([(full * ubatch, rest, 1.0)] if rest else [])


def _workload(
    model: Model, steps: list[tuple[np.ndarray, np.ndarray, int, float]], phase: np.ndarray
) -> Workload:
    tokens = np.array([len(s[1]) for s in steps], np.int32)
    layers = len(model.moe_layers)
    if not layers:
        return without_experts(
            phase, tokens, np.array([int((s[1] + 1).sum()) for s in steps], np.int64)
        )
    step = np.repeat(np.arange(len(steps), dtype=np.int32), tokens * layers)
    columns = {
        "seq": np.zeros(len(step), np.int32),
        "pos": np.concatenate([np.tile(s[1], layers) for s in steps]).astype(np.int32),
        "step": step,
        "phase": phase[step],
        "layer": np.concatenate([np.repeat(model.moe_layers, n) for n in tokens]).astype(np.int16),
        "experts": np.concatenate(
            [s[0].transpose(1, 0, 2).reshape(-1, model.top_k) for s in steps]
        ).astype(np.int16),
    }
    info = ModelInfo(
        model.name, model.n_layers, model.moe_layers, model.n_experts, model.top_k,
        model.architecture, source="a request",
    )  # fmt: skip
    return build_workload(RoutingTrace(columns, RoutingMeta(info, "unknown")))


def without_experts(phase: np.ndarray, tokens: np.ndarray, kv: np.ndarray) -> Workload:
    """Steps of a model without routed experts: no events."""
    none, lo = np.zeros(0, np.int32), np.zeros(1, np.int64)
    return Workload(
        0, 0, 0, "event", none, none, lo, none, none, none, np.zeros(0, bool), lo,
        np.zeros((0, 0), np.float32), phase, tokens, kv, np.zeros(len(phase), np.int32), 0,
    )  # fmt: skip
