"""What a job's policies are told: shapes, sizes, a profile, and to declared oracles the future."""

from __future__ import annotations

import dataclasses

import numpy as np

from uvmsim.experts.tenants import tenant_of
from uvmsim.machine.timing import copy_times
from uvmsim.policies.base import Context, Future
from uvmsim.policies.profile import learn
from uvmsim.policies.registry import PolicySpec
from uvmsim.runs.job import Job
from uvmsim.workload import Workload, next_uses


def context(job: Job, capacity: np.ndarray, pool_of: np.ndarray, spare: int = 0) -> Context:
    """What the policies of a job may know at the start; ``spare`` as `Context.spare`."""
    w = job.workload
    counts, transitions = learn(job.profile) if job.profile else (None, None)
    return Context(
        n_total=w.n_layers * w.n_experts,
        n_layers=w.n_layers,
        n_experts=w.n_experts,
        top_k=w.top_k,
        capacity=capacity,
        pool_of=pool_of,
        expert_bytes=np.asarray(job.model.expert_bytes, np.int64),
        seed=job.seed,
        spare=spare,
        profile_counts=counts,
        profile_transitions=transitions,
        cost_ns=costs(job) if is_priced(job) else None,
        tenant_of=tenant_of(job.tenants) if job.tenants else None,
    )


def costs(job: Job) -> np.ndarray:
    """int64 [layers]: one expert over the link."""
    nbytes = np.asarray(job.model.expert_bytes, np.int64)
    return copy_times(nbytes, job.hardware, "h2d", job.pinned, False)


def is_priced(job: Job) -> bool:
    """Whether the job's policy decides by what experts cost."""
    spec = job.policy
    return isinstance(spec, PolicySpec) and any(
        part is not None and part.priced for part in (spec.eviction, spec.prefetch)
    )


def with_future(ctx: Context, w: Workload, first: int, last: int) -> Context:
    """The context of events ``first`` .. ``last - 1`` with their future: for declared oracles only."""
    upcoming = np.empty(len(w.ids), np.int64)
    first_use = np.empty(ctx.n_total, np.int64)
    next_uses(w.ids, ctx.n_total, w.event_lo[first], w.event_lo[last], upcoming, first_use)
    future = Future(
        upcoming, first_use, w.ids,
        lambda: np.repeat(w.event_step, np.diff(w.event_lo)), lambda: w.event_lo[: last + 1],
    )  # fmt: skip
    return dataclasses.replace(ctx, future=future)
