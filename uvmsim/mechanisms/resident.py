"""Everything in VRAM: what the model would do on a card that holds it."""

from typing import ClassVar

from uvmsim.mechanisms.base import Planned
from uvmsim.mechanisms.event_plan import event_plan
from uvmsim.runs.job import DoesNotFit, Job, fixed_bytes
from uvmsim.runs.llama_times import detailed
from uvmsim.runs.plan import Plan


class Resident(Planned):
    """All experts in VRAM, or an out-of-memory row that says how much is missing."""

    name: ClassVar[str] = "resident"

    def plan(self, job: Job) -> Plan:
        experts = sum(job.model.expert_bytes) * job.workload.n_experts
        needed = fixed_bytes(job) + experts
        if needed > job.hardware.vram_bytes:
            raise DoesNotFit(needed, job.hardware.vram_bytes, "the whole model")
        plan = event_plan(job, times=detailed(job))
        plan.slots = job.workload.n_layers * job.workload.n_experts
        return plan
