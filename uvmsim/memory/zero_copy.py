"""Kernels read the experts across the link every time; nothing is kept."""

from typing import ClassVar

import numpy as np

from uvmsim.memory.base import Job, Mechanism
from uvmsim.memory.fixed import event_plan
from uvmsim.memory.plan import Plan
from uvmsim.timing import expert_times


class ZeroCopy(Mechanism):
    """Experts stay in host memory (preferred location CPU) and are read over the link on each use."""

    name: ClassVar[str] = "zero-copy"

    def plan(self, job: Job) -> Plan:
        w, hw = job.workload, job.hardware
        plan = event_plan(job)
        slow = expert_times(w, job.model, hw, plan.wave_hi, hw.zero_copy_bytes_per_s)
        # `finish` has added each step's tail to the compute time of its last wave: keep it.
        plan.compute_ns += slow - expert_times(w, job.model, hw, plan.wave_hi)
        plan.hit[:] = 0
        plan.counters.hits = 0
        plan.counters.layer_hits[:] = 0
        layer_bytes = np.asarray(job.model.expert_bytes, np.int64)
        plan.bytes_zero_copy = int(layer_bytes[w.ids // w.n_experts].sum())
        return plan
