"""One run, from a job to its outcome."""

from __future__ import annotations

from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.mechanisms import mechanism as mechanism_named
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome


def simulate(
    job: Job, mechanism: str = "expert-cache", clock: str = "fast", record: bool = False
) -> Outcome:
    """The job's outcome. Raises `InputError`. ``record``: keep what an export needs."""
    return mechanism_named(mechanism).run(job, clock, record)


def check_needs(job: Job, trace: RoutingTrace) -> None:
    """Match what a policy needs with what the trace and the job offer, before the run."""
    if job.policy is None:
        return
    for need in sorted(job.policy.needs):
        if need == "next_use":
            continue  # any recorded trace has a future
        if need == "profile":
            if job.profile is None:
                raise InputError(
                    f"policy {job.policy.name} learns from a profile trace; give `profile` TRACE"
                )
        elif need not in trace.capabilities:
            raise InputError(f"policy {job.policy.name} {MISSING.get(need, f'needs {need}')}")
        elif need == "router_scores" and job.workload.unit == "access":
            raise InputError(
                f"policy {job.policy.name} needs a layer's router scores, which single accesses "
                "have not; leave out `unit` access"
            )


MISSING = {
    "router_scores": "needs all router scores, which this trace lacks; record it with --scores",
    "ranked_ids": "needs expert ids in rank order, but this trace has them sorted",
}
