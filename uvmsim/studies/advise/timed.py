"""How long forward passes take, and what they wait for; parts of a model added up.

Layers run one after the other and nothing is fetched ahead, so that a pass takes the sum of its blocks:
blocks that are served in different ways are simulated apart and added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.machine.timing import dense_times, to_ns
from uvmsim.runs.outcome import Outcome
from uvmsim.runs.played import Played
from uvmsim.workload import Workload

CPU_TILE = 64
"""Rows of a prompt for which the CPU's attention reads the KV cache once (ggml-cpu/common.h,
``GGML_FA_TILE_Q``)."""
BOUNDS = ("kernels", "launches", "link", "ram", "cpu", "faults")
"""What a pass spends its time on: the GPU computing, launches and waits of fixed cost, copies over the
link, the CPU reading host memory, the CPU's other work, page faults."""


@dataclass
class Timed:
    """S forward passes."""

    ns: np.ndarray
    """float64 [S]"""
    of: dict[str, np.ndarray]
    """float64 [S] by `BOUNDS`; they add up to ``ns``."""
    hits: np.ndarray | None = None
    """float64 [2, S]: hits and accesses of a cache; None where there is none."""

    def __add__(self, other: Timed) -> Timed:
        return Timed(
            self.ns + other.ns, {k: self.of[k] + other.of[k] for k in BOUNDS},
            other.hits if self.hits is None else self.hits,
        )  # fmt: skip


def nothing(steps: int) -> dict[str, np.ndarray]:
    return {k: np.zeros(steps) for k in BOUNDS}


def timed(run: Outcome, head: bool = True) -> Timed:
    """The passes of a simulated run. ``head``: the LM head is among what was run."""
    w, hw = run.job.workload, run.job.hardware
    of = nothing(w.n_steps)
    ns = run.step_ns.astype(np.float64)
    extra = 0.0 if head else float(hw.engine.dense_launch_ns)
    assert isinstance(run.trail, Played)
    plan, line = run.trail.plan, run.trail.timeline
    first = np.concatenate(([0], plan.step_wave_hi[:-1]))

    def by_step(x: np.ndarray) -> np.ndarray:
        return np.add.reduceat(x.astype(np.float64), first)

    wait = line.wave_ready - line.wave_open
    cpu = np.minimum(wait, plan.cpu_ns)
    sync = np.where(plan.cpu_ns > 0, np.minimum(cpu, hw.engine.cpu_sync_ns), 0)
    on_gpu = plan.compute_ns > 0
    events = by_step(on_gpu * hw.engine.expert_launch_ns + sync)
    if run.pooled:
        events += by_step(np.full(len(wait), hw.engine.decision_ns))
    dense = (run.job.model.n_layers + 1) * hw.engine.dense_launch_ns - extra
    of["ram"], of["link"] = by_step(cpu - sync), by_step(wait - cpu)
    ns = ns - extra
    of["launches"] = np.minimum(events + dense, ns - of["ram"] - of["link"])
    of["kernels"] = ns - of["ram"] - of["link"] - of["launches"]
    hits = None
    if run.pooled:
        step = np.repeat(w.event_step, np.diff(w.event_lo))
        n = w.n_steps
        hits = np.stack([np.bincount(step, plan.hit, n), np.bincount(step, minlength=n)])
    return Timed(ns, of, hits)


def dense_only(w: Workload, model: Model, hw: Hardware, head: bool = True) -> Timed:
    """Blocks without routed experts, on the GPU."""
    _, tail = dense_times(w, model, hw)
    of = nothing(w.n_steps)
    launch = hw.engine.dense_launch_ns
    ns = tail - (0.0 if head else launch)
    of["launches"] = np.full(w.n_steps, float((model.n_layers + head) * launch))
    of["kernels"] = ns - of["launches"]
    return Timed(ns, of)


def on_cpu(gpu: Timed, w: Workload, model: Model, hw: Hardware, mapped: bool) -> Timed:
    """Whole blocks with the CPU, ``gpu`` being the time they would take on the GPU.

    A small batch is computed by the CPU, which reads the weights and the KV cache; a large one is
    computed on the GPU, to which the weights are copied first (ggml-cuda, offload of operations).
    """
    per_access = np.asarray(model.expert_bytes, np.float64)[w.ids // max(w.n_experts, 1)]
    event = np.repeat(w.event_step, np.diff(w.event_lo))
    experts = np.bincount(event, weights=per_access, minlength=w.n_steps)
    nbytes = experts + sum(model.dense_bytes) + model.output_bytes
    kv = w.step_kv * float(model.kv_bytes_per_token)
    cpu = hw.reach.cpu_bytes_per_s
    small = w.step_tokens < hw.engine.offload_tokens
    link = hw.link_bytes_per_s("h2d", pinned=not mapped)
    # What the CPU takes to start a block's operations nobody measured: counted as on the GPU.
    of = {k: v if k == "launches" else np.where(small, 0.0, v) for k, v in gpu.of.items()}
    of["ram"] = of["ram"] + to_ns(np.where(small, nbytes + kv, kv / CPU_TILE) / cpu)
    of["link"] = of["link"] + to_ns(np.where(small, 0.0, nbytes / link))
    of["launches"] = of["launches"] + np.where(small, hw.engine.cpu_sync_ns, 0)
    return Timed(sum(of.values(), np.zeros(w.n_steps)), of)


# ---- some blocks of a model -----------------------------------------------------------------------


def blocks_of(model: Model, lo: int, hi: int, head: bool) -> Model:
    """Blocks ``lo`` to ``hi``, as a model of its own; with the LM head if ``head``."""
    mine = [i for i, b in enumerate(model.moe_layers) if lo <= b < hi]

    def pick(xs: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(xs[i] for i in mine)

    return replace(
        model,
        n_layers=hi - lo,
        moe_layers=tuple(model.moe_layers[i] - lo for i in mine),
        expert_bytes=pick(model.expert_bytes),
        expert_params=pick(model.expert_params),
        dense_bytes=model.dense_bytes[lo:hi],
        dense_params=model.dense_params[lo:hi],
        output_bytes=model.output_bytes if head else 0,
        output_params=model.output_params if head else 0,
        kv_bytes_per_token=model.kv_bytes_per_token * (hi - lo) // model.n_layers,
        tensors=(),
        described_by="",
    )


def events_of(w: Workload, model: Model, lo: int, hi: int) -> Workload:
    """The events of blocks ``lo`` to ``hi``; all steps stay."""
    return events_in(w, [i for i, b in enumerate(model.moe_layers) if lo <= b < hi])


def events_in(w: Workload, layers: Sequence[int]) -> Workload:
    """The events of some MoE layers (ascending), which are counted anew; all steps stay."""
    if len(layers) == w.n_layers:
        return w
    keep = np.isin(w.event_layer, layers)
    size = np.diff(w.event_lo)
    access = np.repeat(keep, size)
    fewer = (w.event_layer[keep] - np.searchsorted(layers, w.event_layer[keep])).astype(np.int32)
    return replace(
        w,
        n_layers=len(layers),
        ids=w.ids[access] - np.repeat(fewer, size[keep]) * np.int32(w.n_experts),
        counts=w.counts[access],
        event_lo=np.concatenate(([0], np.cumsum(size[keep]))).astype(np.int64),
        event_layer=w.event_layer[keep] - fewer,
        event_step=w.event_step[keep],
        event_tokens=w.event_tokens[keep],
        event_first=w.event_first[keep],
        row_lo=np.zeros(int(keep.sum()) + 1, np.int64),
    )
