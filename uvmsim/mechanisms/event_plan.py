"""Plans of mechanisms without a pool: one wave an event, hits and copies known beforehand."""

from __future__ import annotations

import numpy as np

from uvmsim.machine.llamacpp.timing import Times
from uvmsim.machine.timing import copy_times, dense_times, expert_times
from uvmsim.runs.job import Job, counters_without_pool
from uvmsim.runs.llama_times import copy_ns as llama_copy_ns
from uvmsim.runs.plan import DEMAND, Plan, finish


def event_plan(
    job: Job,
    copied: np.ndarray | None = None,
    bytes_per_s: float | None = None,
    times: Times | None = None,
) -> Plan:
    """One wave an event; accesses where ``copied`` (bool [A]) is set are demand copies, the others
    are hits. ``bytes_per_s`` replaces the device memory's speed for all weights; ``times`` (`detailed`)
    all of the engine's coarse constants."""
    w, hw = job.workload, job.hardware
    copied = np.zeros(len(w.ids), bool) if copied is None else copied
    copies = np.concatenate(([0], np.cumsum(copied)))
    expert = w.ids[copied]
    nbytes = np.asarray(job.model.expert_bytes, np.int64)[expert // w.n_experts]
    hit = (~copied).astype(np.uint8)
    hi = w.event_lo[1:]
    if times is None:
        pre, tail = dense_times(w, job.model, hw, bytes_per_s)
        compute = expert_times(w, job.model, hw, hi, bytes_per_s)
        copy = copy_times(nbytes, hw, "h2d", job.pinned, False)
    else:
        pre, tail = np.rint(times.before).astype(np.int64), np.rint(times.tail).astype(np.int64)
        compute = times.experts_ns(w, hi)
        copy = nbytes
        if len(nbytes):
            event = w.access_event[copied]
            copy = llama_copy_ns(job, times, nbytes, event, pinned=job.pinned, upload=False)
    plan = Plan(
        wave_event=np.arange(w.n_events, dtype=np.int32),
        wave_hi=hi,
        pre_ns=pre,
        cpu_ns=np.zeros(w.n_events, np.int64),
        compute_ns=compute,
        wave_copy_hi=copies[hi],
        wave_wait_hi=np.zeros(w.n_events, np.int64),
        copy_bytes=nbytes,
        copy_kind=np.full(len(expert), DEMAND, np.int8),
        copy_after=np.full(len(expert), -1, np.int64),
        copy_ns=copy,
        waits=np.zeros(0, np.int64),
        step_wave_hi=np.zeros(0, np.int64),
        hit=hit,
        counters=counters_without_pool(job, hit),
    )
    return finish(plan, w, tail)
