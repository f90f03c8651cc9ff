"""Several models on one GPU as one workload: layers one model after the other, forward passes in turn.

So the pool's kernel and all policies work on it unchanged. They take turns until a trace ends; what is
left of the others takes turns then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from traces.errors import InputError
from uvmsim.core.read_only import read_only
from uvmsim.machine.model import Model
from uvmsim.runs.job import Job, Tenants, expert_slots
from uvmsim.workload import Workload


def together(job: Job, tenants: Tenants) -> Job:
    """The job of all tenants on the machine of ``job``. Raises `InputError`."""
    if any(w.unit != "event" for w in tenants.workloads):
        raise InputError("access: neighbours share whole layers; leave it out", argument="unit")
    if job.pool != "global":
        raise InputError(f"{job.pool}: neighbours have one pool, or one each", argument="pool")
    return replace(
        job, workload=merged(tenants.workloads), model=merged_model(tenants), tenants=tenants,
        profile=None,
    )  # fmt: skip


def steps_in_turn(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """int64 [S], [S]: whose forward pass each is, and which of its own, one of each in turn."""
    own = np.concatenate([np.arange(n) for n in lengths])
    who = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((who, own))
    return who[order], own[order]


def tenant_of(tenants: Tenants) -> np.ndarray:
    """int32 [experts of all]: whose each is."""
    wide = max(w.n_experts for w in tenants.workloads)
    each = [w.n_layers * wide for w in tenants.workloads]
    return np.repeat(np.arange(len(each), dtype=np.int32), each)


def own_jobs(job: Job) -> list[Job]:
    """The job of each tenant by itself, with its part of the slots. Raises `DoesNotFit`."""
    tenants = job.tenants
    assert tenants is not None and tenants.budget is not None
    slots = expert_slots(job)
    return [
        replace(job, workload=w, model=m, tenants=None, slots=max(int(slots * b + 1e-9), 1))
        for w, m, b in zip(tenants.workloads, tenants.models, tenants.budget, strict=True)
    ]


def merged(parts: Sequence[Workload]) -> Workload:
    """One workload; an expert that only a wider model has is never asked for in the others."""
    wide, k = max(w.n_experts for w in parts), max(w.top_k for w in parts)
    who, own = steps_in_turn([w.n_steps for w in parts])
    at = [np.flatnonzero(who == i) for i in range(len(parts))]
    layer_at = np.cumsum([0, *(w.n_layers for w in parts)])
    step = np.concatenate([at[i][w.event_step] for i, w in enumerate(parts)])
    order = np.argsort(step, kind="stable")

    def events(name: str) -> np.ndarray:
        return np.concatenate([getattr(w, name) for w in parts])[order]

    access_lo, access_n = spans_in_order([np.diff(w.event_lo) for w in parts], order)
    row_lo, row_n = spans_in_order([np.diff(w.row_lo) for w in parts], order)
    ids = [
        (layer_at[i] + w.ids // w.n_experts) * wide + w.ids % w.n_experts
        for i, w in enumerate(parts)
    ]
    layer = np.concatenate([w.event_layer + layer_at[i] for i, w in enumerate(parts)])[order]
    rows, row_seq, row_pos = [], [], []
    seq_at = np.cumsum([0, *(int(w.step_seq.max(initial=-1)) + 1 for w in parts)])
    for i, w in enumerate(parts):
        more = k - w.row_experts.shape[1]
        rows.append(np.pad(w.row_experts, ((0, 0), (0, more)), constant_values=-1))
        row_seq.append(w.row_seq + np.int32(seq_at[i]))
        row_pos.append(w.row_pos)
    steps = {
        name: np.concatenate([getattr(w, name) for w in parts])[_steps_at(parts, who, own)]
        for name in ("step_phase", "step_tokens", "step_kv")
    }
    seq = np.concatenate([w.step_seq + np.int32(seq_at[i]) for i, w in enumerate(parts)])
    return Workload(
        int(layer_at[-1]), wide, k, "event", np.concatenate(ids)[access_lo].astype(np.int32),
        np.concatenate([w.counts for w in parts])[access_lo], access_n, layer.astype(np.int32),
        step[order].astype(np.int32), events("event_tokens"), events("event_first"), row_n,
        np.zeros((0, 0), np.float32), **steps, step_seq=seq[_steps_at(parts, who, own)],
        missing_rows=sum(w.missing_rows for w in parts),
        row_experts=read_only(np.ascontiguousarray(np.concatenate(rows)[row_lo])),
        row_seq=read_only(np.concatenate(row_seq)[row_lo]),
        row_pos=read_only(np.concatenate(row_pos)[row_lo]),
    )  # fmt: skip


def merged_model(tenants: Tenants) -> Model:
    """All blocks of all models; what the machine must keep for them is the sum."""
    models = tenants.models
    first = models[0]
    blocks = np.cumsum([0, *(m.n_layers for m in models)]).tolist()

    many = {
        name: tuple(x for m in models for x in getattr(m, name))
        for name in ("expert_bytes", "dense_bytes", "expert_params", "dense_params")
    }
    sums = {
        name: sum(getattr(m, name) for m in models)
        for name in ("output_bytes", "embedding_bytes", "kv_bytes_per_token", "output_params",
                     "embedding_params")
    }  # fmt: skip
    alike: Any = many | sums
    return replace(
        first, name=" + ".join(m.name for m in models), n_layers=blocks[-1],
        moe_layers=tuple(x + blocks[i] for i, m in enumerate(models) for x in m.moe_layers),
        n_experts=max(m.n_experts for m in models), top_k=max(m.top_k for m in models),
        **alike,
        tensors=(), described_by="",
    )  # fmt: skip


def _steps_at(parts: Sequence[Workload], who: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Where each step stands in the parts one after the other."""
    first = np.cumsum([0, *(w.n_steps for w in parts)])
    found: np.ndarray = first[who] + own
    return found


def spans_in_order(lengths: list[np.ndarray], order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each entry of reordered spans comes from, and the spans' new bounds."""
    n = np.concatenate(lengths)
    start = (np.cumsum(n) - n)[order]
    n = n[order]
    bounds = np.concatenate(([0], np.cumsum(n))).astype(np.int64)
    return np.repeat(start - bounds[:-1], n) + np.arange(bounds[-1]), bounds
