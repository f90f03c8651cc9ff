"""A pool of expert slots in device memory, filled on demand and by prefetch."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar

import numpy as np

from traces.errors import InputError
from uvmsim.clocks import fast
from uvmsim.experts.decisions import Decisions, Served
from uvmsim.experts.hook_time import hook_time, told_note
from uvmsim.experts.knowledge import costs, is_priced
from uvmsim.experts.misses import Split
from uvmsim.experts.pricing import price
from uvmsim.experts.ram import check_tier, read_plan
from uvmsim.mechanisms.base import Planned
from uvmsim.policies.kinds import EXPERTS, PolicyKind
from uvmsim.runs.job import Job, capacities
from uvmsim.runs.outcome import Outcome
from uvmsim.runs.plan import Plan
from uvmsim.runs.played import Played


class ExpertCache(Planned):
    """Slots for experts in VRAM; a miss copies the expert over the link, a policy says who leaves."""

    name: ClassVar[str] = "expert-cache"
    decides: ClassVar[PolicyKind | None] = EXPERTS

    def plan(self, job: Job) -> Plan:
        if job.tier is not None:
            check_tier(job)
        return planned_by(Decisions(job, self.split(job)), job)

    def split(self, job: Job) -> Split | None:
        """How the CPU shares the misses; None: what the policy does not give it, it does not get."""
        return None

    def decided_by(self, job: Job) -> Hashable:
        """How many slots there are; no policy knows how fast anything is, but for one that asks what
        experts cost."""
        slots = capacities(job)[0].tobytes()
        if not is_priced(job):
            return slots
        cost = costs(job)
        return slots, cost.tobytes()

    def again(self, before: Outcome, job: Job) -> Outcome:
        """The same plan, priced for another machine."""
        assert isinstance(before.trail, Played)
        plan = before.trail.plan
        notes = [x for x in plan.notes if x not in told_note(before.job)]
        plan = replace(plan, notes=notes + told_note(job))
        plan = price(plan, job, before.job.hardware)
        return self.played(job, Played(plan, fast.run(plan)))


def planned_by(decisions: Decisions, job: Job) -> Plan:
    """What decisions lead to, priced for the job's machine."""
    return price(unpriced(decisions, job), job)


def unpriced(decisions: Decisions, job: Job, parts: list[Served] | None = None) -> Plan:
    """What decisions lead to; nothing in it takes any time yet. ``parts``: all that was served, where
    somebody has asked already."""
    parts = decisions.serve_all() if parts is None else parts

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(p, name) for p in parts])

    policy_ns = None
    if job.policy_time:
        measured = hook_time(job)
        policy_ns = measured.by_event(job)
        if policy_ns.any():
            decisions.notes.append(measured.note(job))
    decisions.notes.extend(told_note(job))
    kind, expert = joined("copy_kind"), joined("copy_expert")
    layer = expert // job.workload.n_experts
    wave_hi = joined("wave_hi")
    no_time = np.zeros(len(wave_hi), np.int64)
    reads = None
    if job.tier is not None:
        if decisions.on_cpu() is not None:
            raise InputError(
                ": the CPU computes misses from host memory, which may not hold them; leave it out",
                argument="tier",
            )
        reads = read_plan(job, expert, kind)
    return Plan(
        wave_event=joined("wave_event"),
        wave_hi=wave_hi,
        pre_ns=no_time,
        cpu_ns=no_time,
        compute_ns=no_time,
        wave_copy_hi=joined("wave_copy_hi"),
        wave_wait_hi=joined("wave_wait_hi"),
        copy_bytes=np.asarray(job.model.expert_bytes, np.int64)[layer],
        copy_kind=kind,
        copy_after=joined("copy_after"),
        copy_ns=np.zeros(len(layer), np.int64),
        waits=joined("waits"),
        step_wave_hi=np.zeros(0, np.int64),
        hit=decisions.hit,
        counters=decisions.counters(),
        slots=decisions.slots,
        policy_ns=policy_ns,
        on_cpu=decisions.on_cpu(),
        reads=reads,
        notes=decisions.notes,
        saved=decisions.saved() if job.keeps_state else [],
    )
