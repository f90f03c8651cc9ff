"""The CPU computes its share of the misses while the link brings the others."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

import numpy as np

from uvmsim.experts.misses import Split
from uvmsim.machine.cpu_experts import cpu_experts
from uvmsim.machine.timing import copy_times, dense_times
from uvmsim.mechanisms.expert_cache import ExpertCache
from uvmsim.runs.job import Job
from uvmsim.runs.llama_times import copy_ns as llama_copy_ns
from uvmsim.runs.llama_times import detailed
from uvmsim.runs.outcome import Outcome
from uvmsim.runs.plan import Plan


class Hybrid(ExpertCache):
    """An expert cache whose misses the CPU and the link share, so that both are done at once."""

    name: ClassVar[str] = "hybrid"

    def plan(self, job: Job) -> Plan:
        plan = super().plan(job)
        speed = cpu_experts(job.hardware, job.model.quantisation)
        plan.notes.append(
            f"hybrid: {job.model.quantisation} experts on the CPU: {speed.bytes_per_s / 1e9:.3g} "
            f"GB/s, {speed.flops / 1e9:.3g} GFLOPS ({speed.source})"
        )
        return plan

    def split(self, job: Job) -> Split:
        """What a miss costs on either side, on the job's machine."""
        return split_of(job)

    def decided_by(self, job: Job) -> Hashable | None:
        """The share of the CPU depends on how fast everything is."""
        return None

    def again(self, before: Outcome, job: Job) -> Outcome:
        return self.run(job)


def split_of(job: Job) -> Split:
    """An expert's time over the link, by layer, and on the CPU, by layer and tokens."""
    w, m, hw = job.workload, job.model, job.hardware
    nbytes = np.asarray(m.expert_bytes, np.float64)
    params = np.asarray(m.expert_params, np.float64)
    speed = cpu_experts(hw, m.quantisation)
    tokens = np.arange(int(w.counts.max(initial=0)) + 1)
    cpu = np.stack([speed.ns(b, p, tokens) for b, p in zip(nbytes, params, strict=True)])
    return Split(
        _copy_ns(job), cpu, np.array([speed.sync_ns], np.int64), _rests(job),
        np.zeros(1, np.int64), np.zeros(max(w.widest, 1), np.int64),
    )  # fmt: skip


def _copy_ns(job: Job) -> np.ndarray:
    """int64 [layers]: one expert over the link."""
    m, w = job.model, job.workload
    nbytes = np.asarray(m.expert_bytes, np.int64)
    times = detailed(job, ncmoe=m.n_layers, slots=1, pinned=job.pinned)
    if times is None or not w.n_events:
        return copy_times(nbytes, job.hardware, "h2d", job.pinned, False)
    first = np.array([np.argmax(w.event_layer == layer) for layer in range(w.n_layers)])
    return llama_copy_ns(job, times, nbytes, first, pinned=job.pinned, upload=True)


def _rests(job: Job) -> np.ndarray:
    """int64 [E]: the dense work between an event and the next, while which nobody asks for a copy;
    empty where nothing is copied in behind."""
    if not job.behind:
        return np.zeros(0, np.int64)
    w, m = job.workload, job.model
    times = detailed(job, ncmoe=m.n_layers, slots=1, pinned=job.pinned)
    if times is None:
        before = dense_times(w, m, job.hardware)[0]
    else:
        before = np.rint(times.before).astype(np.int64)
    return np.append(before[1:], 0).astype(np.int64)
