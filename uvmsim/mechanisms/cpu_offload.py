"""llama.cpp's ``-ncmoe N``: the experts of the first N layers live with the CPU."""

import dataclasses
from typing import ClassVar

import numpy as np

from uvmsim.machine.timing import expert_times, to_ns
from uvmsim.mechanisms.base import Planned
from uvmsim.mechanisms.event_plan import event_plan
from uvmsim.runs.job import DoesNotFit, Job, fixed_bytes
from uvmsim.runs.llama_times import detailed
from uvmsim.runs.plan import Plan
from uvmsim.workload import Workload


class CpuOffload(Planned):
    """Experts of the first N layers on the CPU: computed there in decode, copied in for a prefill."""

    name: ClassVar[str] = "cpu-offload"

    def plan(self, job: Job) -> Plan:
        w, hw, m = job.workload, job.hardware, job.model
        on_cpu = np.asarray(m.moe_layers) < job.ncmoe
        kept = int(np.asarray(m.expert_bytes, np.int64)[~on_cpu].sum()) * w.n_experts
        # A prefill needs a layer's worth of scratch to copy the used experts into.
        scratch = int(max(np.asarray(m.expert_bytes)[on_cpu], default=0)) * w.n_experts
        needed = fixed_bytes(job) + kept + scratch
        if needed > hw.vram_bytes:
            raise DoesNotFit(needed, hw.vram_bytes, f"all but the experts of {job.ncmoe} layers")
        offloaded = on_cpu[w.event_layer]
        big = w.event_tokens >= hw.engine.offload_tokens
        per_access = np.diff(w.event_lo)
        if hw.engine.maps_weights:  # what a prefill copies from a mapped file is not page-locked
            job = dataclasses.replace(job, pinned=False)
        times = detailed(job, ncmoe=job.ncmoe, pinned=job.pinned)
        if times is not None:
            big = times.copied > 0
        plan = event_plan(job, copied=np.repeat(offloaded & big, per_access), times=times)
        cpu = offloaded & ~big
        if times is None:
            plan.cpu_ns[cpu] = self._cpu_ns(job, plan)[cpu] + hw.engine.cpu_sync_ns
            plan.compute_ns[cpu] -= expert_times(w, m, hw, plan.wave_hi)[cpu]
        else:
            plan.cpu_ns[cpu] = plan.compute_ns[cpu]
            plan.compute_ns[cpu] = 0
        away = np.repeat(cpu, per_access)
        plan.hit[away] = 0
        self._count(plan, w, away)
        plan.slots = int((~on_cpu).sum()) * w.n_experts
        return plan

    def _cpu_ns(self, job: Job, plan: Plan) -> np.ndarray:
        """Reading the experts' weights from host memory, which bounds a CPU's expert kernels."""
        w = job.workload
        layer = w.ids // w.n_experts
        nbytes = np.asarray(job.model.expert_bytes, np.float64)[layer]
        total = np.concatenate(([0.0], np.cumsum(nbytes)))
        return to_ns(
            (total[w.event_lo[1:]] - total[w.event_lo[:-1]]) / job.hardware.reach.cpu_bytes_per_s
        )

    def _count(self, plan: Plan, w: Workload, away: np.ndarray) -> None:
        c = plan.counters
        c.hits = int(plan.hit.sum())
        event = w.access_event[away]
        phase = w.step_phase[w.event_step[event]]
        np.subtract.at(c.layer_hits, (phase, w.event_layer[event]), 1)
