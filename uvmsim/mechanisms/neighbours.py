"""Several models on one GPU: one pool of expert slots or one each, forward passes turn by turn.

A forward pass of one has the GPU and the link to itself, but for prefetches of another that are still
on their way. Beside the speed of all stands what each loses against being alone with all the memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from traces.errors import InputError
from uvmsim.experts.decisions import Decisions
from uvmsim.experts.tenants import own_jobs, spans_in_order, steps_in_turn
from uvmsim.machine.timing import copy_times, dense_times, expert_times, write_back_times
from uvmsim.mechanisms.base import Planned
from uvmsim.mechanisms.expert_cache import ExpertCache, unpriced
from uvmsim.policies.kinds import EXPERTS, PolicyKind
from uvmsim.policies.registry import PolicySpec, asks
from uvmsim.runs.job import Job, Tenants, expert_slots
from uvmsim.runs.llama_times import llama_model
from uvmsim.runs.outcome import Outcome, share
from uvmsim.runs.plan import WRITEBACK, Counters, Plan, finish
from uvmsim.runs.played import Played


@dataclass(frozen=True)
class TenantsPlayed(Played):
    """A plan of several models that a clock has played."""

    tenants: list[dict[str, Any]]
    """What became of each, plain JSON types."""

    def measures(self, run: Outcome) -> dict[str, Any]:
        return super().measures(run) | {"tenants": self.tenants}


class Neighbours(Planned):
    """An expert cache that several models share, or share out (`Job.tenants`)."""

    name: ClassVar[str] = "neighbours"
    decides: ClassVar[PolicyKind | None] = EXPERTS

    def plan(self, job: Job) -> Plan:
        tenants = _tenants(job)
        w, hw = job.workload, job.hardware
        if tenants.budget is None:
            plan = unpriced(Decisions(job), job)
        else:
            plan = plans_in_turn([unpriced(Decisions(j), j) for j in own_jobs(job)], job, tenants)
        back = plan.copy_kind == WRITEBACK
        both = bool(back.any())
        plan.copy_ns = copy_times(plan.copy_bytes, hw, "h2d", job.pinned, both)
        if both:
            plan.copy_ns[back] = write_back_times(
                plan.copy_bytes[back], hw, job.pinned, both, False
            )
        pre, tail = dense_in_turn(job, tenants)
        first = np.concatenate(([True], np.diff(plan.wave_event) != 0))
        plan.pre_ns = np.where(first, pre[plan.wave_event] + hw.engine.decision_ns, 0)
        plan.compute_ns = expert_times(w, job.model, hw, plan.wave_hi)
        return finish(plan, w, tail)

    def run(self, job: Job, clock: str = "fast", record: bool = False) -> Outcome:
        run = super().run(job, clock, record)
        if isinstance(run.trail, Played):
            told = told_of(job, run.trail.plan, run.step_ns, clock)
            run.trail = TenantsPlayed(run.trail.plan, run.trail.timeline, told)
            budget = _tenants(job).budget
            run.about["budget"] = "shared" if budget is None else [round(b, 6) for b in budget]
        return run


def _tenants(job: Job) -> Tenants:
    """Who is there. Raises `InputError` for what neighbours have not."""
    if job.tenants is None:
        raise InputError("neighbours: name one; give `neighbour` TRACE", argument="mechanisms")
    if not isinstance(job.policy, PolicySpec) or asks(job.policy):
        raise InputError("neighbours need a policy that decides about experts, and no CPU")
    if job.hardware.engine.terms is not None and any(llama_model(m) for m in job.tenants.models):
        raise InputError(
            f"{job.hardware.engine.name}: has times of one model's kernels; choose one without terms, "
            "such as estimated",
            argument="program",
        )
    for need in ("router_scores", "router_guesses", "profile"):
        if need in job.policy.needs:
            raise InputError(f"policy {job.policy.name}: needs {need}, which neighbours have not")
    for name in ("prefetch_pieces", "policy_time", "state", "keeps_state"):
        if getattr(job, name):
            raise InputError(": is of one model alone; leave it out", argument=name)
    return job.tenants


def plans_in_turn(parts: list[Plan], job: Job, tenants: Tenants) -> Plan:
    """The plans of all tenants as one of the merged workload, nothing priced."""
    who, _ = steps_in_turn([w.n_steps for w in tenants.workloads])
    at = [np.flatnonzero(who == i) for i in range(len(parts))]
    step = np.concatenate([
        at[i][w.event_step[p.wave_event]]
        for i, (w, p) in enumerate(zip(tenants.workloads, parts, strict=True))
    ])  # fmt: skip
    order = np.argsort(step, kind="stable")

    def spans(name: str) -> tuple[np.ndarray, np.ndarray]:
        return spans_in_order([np.diff(getattr(p, name), prepend=0) for p in parts], order)

    accesses, wave_hi = spans("wave_hi")
    copies, copy_hi = spans("wave_copy_hi")
    waits, wait_hi = spans("wave_wait_hi")
    number = np.empty(len(copies) + 1, np.int64)
    number[copies], number[-1] = np.arange(len(copies)), -1
    first = np.cumsum([0, *(len(p.copy_kind) for p in parts)])
    after = [
        np.where(p.copy_after >= 0, p.copy_after + f, -1)
        for p, f in zip(parts, first, strict=False)
    ]
    new_event = np.concatenate([np.diff(p.wave_event, prepend=-1) > 0 for p in parts])[order]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(p, name) for p in parts])

    none = np.zeros(len(order), np.int64)
    return Plan(
        wave_event=(np.cumsum(new_event) - 1).astype(np.int32), wave_hi=wave_hi[1:], pre_ns=none,
        cpu_ns=none, compute_ns=none, wave_copy_hi=copy_hi[1:], wave_wait_hi=wait_hi[1:],
        copy_bytes=joined("copy_bytes")[copies], copy_kind=joined("copy_kind")[copies],
        copy_after=number[np.concatenate(after)[copies]], copy_ns=np.zeros(len(copies), np.int64),
        waits=number[np.concatenate([p.waits + f for p, f in zip(parts, first, strict=False)])[waits]],
        step_wave_hi=np.zeros(0, np.int64), hit=joined("hit")[accesses],
        counters=_counted([p.counters for p in parts]), slots=sum(p.slots for p in parts),
        notes=list(dict.fromkeys(n for p in parts for n in p.notes)),
    )  # fmt: skip


def _counted(parts: list[Counters]) -> Counters:
    """Counters of all, layers one model after the other."""
    total = Counters(
        layer_hits=np.concatenate([c.layer_hits for c in parts], axis=1),
        layer_accesses=np.concatenate([c.layer_accesses for c in parts], axis=1),
    )
    for name in ("accesses", "hits", "evictions", "prefetch_issued", "prefetch_used",
                 "prefetch_wasted", "resident_at_end", "bypassed", "bypassed_hits"):  # fmt: skip
        setattr(total, name, sum(getattr(c, name) for c in parts))
    return total


def dense_in_turn(job: Job, tenants: Tenants) -> tuple[np.ndarray, np.ndarray]:
    """As `dense_times`, of each tenant's own model: int64 [E], [S] of the merged workload."""
    w = job.workload
    who, _ = steps_in_turn([x.n_steps for x in tenants.workloads])
    pre, tail = np.zeros(w.n_events, np.int64), np.zeros(w.n_steps, np.int64)
    for i, (own, model) in enumerate(zip(tenants.workloads, tenants.models, strict=True)):
        mine = who == i
        pre[mine[w.event_step]], tail[mine] = dense_times(own, model, job.hardware)
    return pre, tail


def told_of(job: Job, plan: Plan, step_ns: np.ndarray, clock: str) -> list[dict[str, Any]]:
    """What became of each tenant while all were there, beside the same forward passes alone.

    ``slowdown``: time until it got its tokens over that when alone, turns of others included;
    ``own_slowdown``: the same of its own forward passes, what others cost it in pool and link.
    """
    tenants = _tenants(job)
    lengths = [w.n_steps for w in tenants.workloads]
    who, own = steps_in_turn(lengths)
    shared = own < min(lengths)
    together = float(step_ns[shared].sum())
    w = job.workload
    of_access = w.event_step[w.access_event]
    slots = expert_slots(job)
    told = []
    for i, (name, workload, model) in enumerate(
        zip(tenants.names, tenants.workloads, tenants.models, strict=True)
    ):
        mine = shared & (who == i)
        alone_job = replace(
            job, workload=workload, model=model, tenants=None,
            slots=min(slots, workload.n_layers * workload.n_experts),
        )  # fmt: skip
        alone = ExpertCache().run(alone_job, clock)
        assert isinstance(alone.trail, Played)
        n = min(lengths)
        alone_ns, tokens = float(alone.step_ns[:n].sum()), int(workload.step_tokens[:n].sum())
        hit = plan.hit[mine[of_access]]
        alone_hit = alone.trail.plan.hit[workload.event_step[workload.access_event] < n]
        told.append({
            "name": name, "tokens": tokens, "tokens_per_s": tokens / together * 1e9,
            "alone_tokens_per_s": tokens / alone_ns * 1e9, "slowdown": together / alone_ns,
            "own_slowdown": float(step_ns[mine].sum()) / alone_ns,
            "hit_rate": share(int(hit.sum()), len(hit)),
            "alone_hit_rate": share(int(alone_hit.sum()), len(alone_hit)),
        })  # fmt: skip
    return told
