"""Kernels read the weights across the link every time; nothing is kept."""

from typing import ClassVar

import numpy as np

from uvmsim.memory.base import Job, Mechanism
from uvmsim.memory.fixed import event_plan
from uvmsim.memory.plan import Plan


class ZeroCopy(Mechanism):
    """All weights stay in host memory and are read over the link on each use.

    What managed memory with preferred location CPU does: the driver maps the pages remotely and
    migrates none (uvm_va_block.c, block_select_residency). The KV cache is in VRAM.
    """

    name: ClassVar[str] = "zero-copy"

    def plan(self, job: Job) -> Plan:
        w, m = job.workload, job.model
        plan = event_plan(job, bytes_per_s=job.hardware.zero_copy_bytes_per_s)
        plan.hit[:] = 0
        plan.counters.hits = 0
        plan.counters.layer_hits[:] = 0
        experts = int(np.asarray(m.expert_bytes, np.int64)[w.ids // w.n_experts].sum())
        plan.bytes_zero_copy = experts + w.n_steps * m.resident_bytes
        return plan
