"""Durations of an expert pool's plan: the same decisions, priced for a machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from traces.errors import InputError
from uvmsim.experts.hook_time import told_hook_time
from uvmsim.machine.cpu_experts import cpu_experts
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llamacpp.timing import Times
from uvmsim.machine.timing import copy_times, dense_times, expert_times, write_back_times
from uvmsim.runs.job import Job
from uvmsim.runs.llama_times import copy_ns as llama_copy_ns
from uvmsim.runs.llama_times import detailed
from uvmsim.runs.plan import PREFETCH, WRITEBACK, Plan, finish

LINK_FIELDS = (
    "vram_bytes", "h2d_bytes_per_s", "d2h_bytes_per_s", "copy_latency_ns", "duplex",
    "duplex_factor", "zero_copy_bytes_per_s", "pageable_h2d_bytes_per_s",
    "pageable_d2h_bytes_per_s", "pinned_alloc_bytes_per_s", "sources",
)  # fmt: skip
"""Fields of a machine that do not bear on what its GPU computes."""


def price(plan: Plan, job: Job, before: Hardware | None = None) -> Plan:
    """``plan`` with the durations it has on the job's machine.

    ``before`` is the machine the plan was priced for, if it was: where only the link differs, the
    GPU's own times are kept. Decisions do not depend on any of this, so a sweep over links and GPUs
    decides once and prices many times.
    """
    w, hw = job.workload, job.hardware
    times = detailed(job, ncmoe=job.model.n_layers, slots=plan.slots, pinned=job.pinned)
    if times is not None:
        if job.prefetch_pieces:
            raise InputError(
                f"{job.prefetch_pieces}: llama.cpp's copies go matrix by matrix, on the compute "
                "stream; choose an engine without terms",
                argument="prefetch_pieces",
            )
        return _priced(plan, job, times)
    back = plan.copy_kind == WRITEBACK
    writes = bool(back.any())
    both = writes and not job.write_back_alloc
    copy_ns = copy_times(plan.copy_bytes, hw, "h2d", job.pinned, both)
    piece_ns = _cut(plan, job, copy_ns, both)
    if writes:
        copy_ns[back] = write_back_times(
            plan.copy_bytes[back], hw, job.pinned, both, job.write_back_alloc
        )
    if before is not None and _gpu(hw) == _gpu(before) and plan.on_cpu is None:
        return replace(plan, copy_ns=copy_ns, piece_ns=piece_ns)
    pre, tail = dense_times(w, job.model, hw)
    first_wave = np.concatenate(([True], np.diff(plan.wave_event) != 0))
    priced = replace(
        plan,
        copy_ns=copy_ns,
        piece_ns=piece_ns,
        pre_ns=np.where(first_wave, pre[plan.wave_event] + hw.engine.decision_ns, 0)
        + _policy_ns(plan, job, first_wave),
        cpu_ns=cpu_waves(plan, job),
        compute_ns=expert_times(w, job.model, hw, plan.wave_hi, without=plan.on_cpu),
    )
    return finish(priced, w, tail)


def _cut(plan: Plan, job: Job, copy_ns: np.ndarray, both: bool) -> int:
    """Give prefetches in ``copy_ns`` the time that they take in pieces, each with a copy's latency;
    returns that of a full piece."""
    size = job.prefetch_pieces
    if not size:
        return 0
    ahead = plan.copy_kind == PREFETCH
    nbytes = plan.copy_bytes[ahead]
    full = int(copy_times(np.array([size]), job.hardware, "h2d", job.pinned, both)[0])
    more = (nbytes - 1) // size
    last = copy_times(nbytes - more * size, job.hardware, "h2d", job.pinned, both)
    copy_ns[ahead] = more * full + last
    return full


def cpu_waves(plan: Plan, job: Job) -> np.ndarray:
    """int64 [W]: what the CPU computes of each wave, one expert after the other."""
    waves = len(plan.wave_hi)
    if plan.on_cpu is None or not plan.on_cpu.any():
        return np.zeros(waves, np.int64)
    w, m = job.workload, job.model
    speed = cpu_experts(job.hardware, m.quantisation)
    a = np.flatnonzero(plan.on_cpu)
    layer = w.ids[a] // w.n_experts
    ns = speed.ns(
        np.asarray(m.expert_bytes, np.float64)[layer],
        np.asarray(m.expert_params, np.float64)[layer], w.counts[a],
    )  # fmt: skip
    wave = np.searchsorted(plan.wave_hi, a, side="right")
    total = np.zeros(waves, np.int64)
    np.add.at(total, wave, ns)
    total[np.unique(wave)] += speed.sync_ns
    return total


def _priced(plan: Plan, job: Job, times: Times) -> Plan:
    """`price` by llama.cpp's own expert cache: a wait for ids a layer, uploads of one matrix at a time
    on the compute stream."""
    w = job.workload
    wave = np.repeat(np.arange(len(plan.wave_event)), np.diff(plan.wave_copy_hi, prepend=0))
    event = plan.wave_event[wave]
    cached = times.copied[event] == 0
    copies = np.zeros(len(plan.copy_bytes), np.int64)
    for upload in (True, False):
        which = cached == upload
        if which.any():
            copies[which] = llama_copy_ns(
                job, times, plan.copy_bytes[which], event[which], pinned=job.pinned, upload=upload
            )
    first = np.concatenate(([True], np.diff(plan.wave_event) != 0))
    before = np.rint(times.before).astype(np.int64)
    priced = replace(
        plan, copy_ns=copies,
        pre_ns=np.where(first, before[plan.wave_event], 0) + _policy_ns(plan, job, first),
        cpu_ns=cpu_waves(plan, job),
        compute_ns=times.experts_ns(w, plan.wave_hi, without=plan.on_cpu),
    )  # fmt: skip
    return finish(priced, w, np.rint(times.tail).astype(np.int64))


def _policy_ns(plan: Plan, job: Job, first_wave: np.ndarray) -> np.ndarray | int:
    """What the policy's hooks take before an event's first wave: as measured in this run, else as the
    machine's description says, else nothing."""
    by_event, told = plan.policy_ns, None
    if by_event is None:
        told = told_hook_time(job)
    if told is not None:
        by_event = told.by_event(job)
    return 0 if by_event is None else np.where(first_wave, by_event[plan.wave_event], 0)


def _gpu(hw: Hardware) -> dict[str, Any]:
    return {k: v for k, v in vars(hw).items() if k not in LINK_FIELDS}
