"""One run from a job to a result."""

from __future__ import annotations

import importlib

from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.mechanisms import mechanism as mechanism_named
from uvmsim.runs.job import DoesNotFit, Job
from uvmsim.runs.outcome import Result

ENGINES = {"des": "uvmsim.clocks.des", "fast": "uvmsim.clocks.fast"}


def simulate(
    job: Job, mechanism: str = "expert-cache", engine: str = "fast", record: bool = False
) -> Result:
    """Plan the job with the mechanism, clock it with the engine. Raises `InputError`.

    ``record``: a mechanism with a clock of its own keeps its program, for export."""
    if engine not in ENGINES:
        raise InputError(f"{engine}: must be one of {', '.join(ENGINES)}", argument="engine")
    clock = importlib.import_module(ENGINES[engine])
    served = mechanism_named(mechanism)
    if (whole := served.run(job, engine, record)) is not None:
        return whole
    try:
        plan = served.plan(job)
    except DoesNotFit as err:
        return Result(job, mechanism, None, None, err)
    timeline = clock.run(plan)
    result = Result(job, mechanism, plan, timeline)
    check_result(result)
    return result


def check_result(result: Result) -> None:
    """Invariants of every finished run (INVARIANTS.md 1-3), asserted on real work too."""
    plan, t = result.plan, result.timeline
    assert plan is not None and t is not None
    c = plan.counters
    if int(plan.hit.sum()) != c.hits or len(plan.hit) != c.accesses:
        raise AssertionError("hits + misses are not the accesses")
    if c.prefetch_used + c.prefetch_wasted != c.prefetch_issued:
        raise AssertionError("a prefetch is neither used nor wasted")
    if (t.copy_done - t.copy_start != plan.copy_ns).any():
        raise AssertionError("a copy took another time than planned")
    if len(t.step_end) and (t.step_end[1:] < t.step_end[:-1]).any():
        raise AssertionError("the clock ran backwards")


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
