"""Routing made up so that every layer of every step costs the same: workloads for fitting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replay.layout import layout_for
from traces.files.schema import DECODE
from uvmsim.core.read_only import read_only
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.workload import Workload


@dataclass(frozen=True)
class Shape:
    """One run: a model of equal layers, one token a step."""

    mode: str
    expert_bytes: int
    dense_bytes: int
    top_k: int
    missing: int = 0
    """`expert-cache`: experts of each layer that are never found, of ``top_k``."""
    layers: int = 8
    steps: int = 40
    dtype: str = "mxfp4"

    @property
    def n_experts(self) -> int:
        """``top_k`` that stay and twice as many as are missing, so that those come round too late."""
        return self.top_k + 2 * self.missing


def job(shape: Shape, hardware: Hardware) -> Job:
    """The shape as a job for simulator and engine alike."""
    w = workload(shape)
    slots = shape.layers * shape.top_k
    return Job(
        w, model(shape), hardware, policy=parse("lru"), slots=slots if shape.mode == "expert-cache"
        else None,
    )  # fmt: skip


def workload(s: Shape) -> Workload:
    """Each layer reads the same ``top_k - missing`` experts in every step and ``missing`` others,
    three sets in turn: with LRU and ``layers * top_k`` slots they are gone when their turn comes."""
    k, fixed = s.top_k, s.top_k - s.missing
    ids = np.empty((s.steps, s.layers, k), np.int32)
    turning = s.n_experts - fixed
    for step in range(s.steps):
        moving = (fixed + (step * s.missing + np.arange(s.missing)) % max(turning, 1)) % s.n_experts
        row = np.concatenate((np.arange(fixed), moving))
        for layer in range(s.layers):
            ids[step, layer] = layer * s.n_experts + row
    return from_ids(ids, s.n_experts)


def from_ids(ids: np.ndarray, n_experts: int) -> Workload:
    """A workload of one token a step; ``ids`` int32 [steps, layers, top_k]: layer * n_experts +
    expert."""
    steps, layers, k = ids.shape
    events = steps * layers
    return Workload(
        layers, n_experts, k, "event", ids.reshape(-1), np.ones(ids.size, np.int32),
        np.arange(events + 1, dtype=np.int64) * k,
        np.tile(np.arange(layers, dtype=np.int32), steps),
        np.repeat(np.arange(steps, dtype=np.int32), layers),
        np.ones(events, np.int32), np.ones(events, bool),
        np.arange(events + 1, dtype=np.int64), np.zeros((0, 0), np.float32),
        np.full(steps, DECODE, np.uint8), np.ones(steps, np.int32),
        np.zeros(steps, np.int64), np.zeros(steps, np.int32), 0,
        read_only((ids.reshape(events, k) % n_experts).astype(np.int16)),
        read_only(np.zeros(events, np.int32)),
        read_only(np.repeat(np.arange(steps, dtype=np.int32), layers)),
    )  # fmt: skip


def model(s: Shape, n_experts: int | None = None) -> Model:
    """Equal layers whose dense parts are read, not multiplied, as the engine does. ``n_experts``:
    where a layer has others than the shape needs."""
    layout = layout_for(s.expert_bytes, s.dtype)
    n = s.layers
    return Model(
        name=f"synthetic {s.dtype}", architecture="synthetic", n_layers=n,
        moe_layers=tuple(range(n)), n_experts=n_experts or s.n_experts, top_k=s.top_k,
        quantisation=QUANTISATION[s.dtype], expert_bytes=(s.expert_bytes,) * n,
        dense_bytes=(s.dense_bytes,) * n, output_bytes=s.dense_bytes, embedding_bytes=0,
        n_embd=layout.n_embd, n_ff_expert=layout.n_ff, n_vocab=None, kv_bytes_per_token=0,
        expert_params=(3 * layout.weights,) * n, dense_params=(0,) * n, output_params=0,
        embedding_params=0,
    )  # fmt: skip


QUANTISATION = {"mxfp4": "MXFP4", "fp16": "F16", "bf16": "BF16", "fp32": "F32"}
