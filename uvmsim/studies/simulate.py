"""One run, from a job to its outcome."""

from __future__ import annotations

from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.mechanisms import mechanism as mechanism_named
from uvmsim.mechanisms.expert_cache import ExpertCache
from uvmsim.mechanisms.multi_gpu import MultiGpu
from uvmsim.mechanisms.neighbours import Neighbours
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome


def simulate(
    job: Job, mechanism: str = "expert-cache", clock: str = "fast", record: bool = False
) -> Outcome:
    """The job's outcome. Raises `InputError`. ``record``: keep what an export needs."""
    return mechanism_named(on_gpus(job, mechanism)).run(job, clock, record)


def on_gpus(job: Job, mechanism: str) -> str:
    """The mechanism that runs on as many GPUs as the job has, or with its neighbours. Raises
    `InputError` where none does."""
    if job.tenants is not None:
        if job.gpus > 1:
            raise InputError(f"{job.gpus}: neighbours share one GPU", argument="gpus")
        if mechanism not in (ExpertCache.name, Neighbours.name):
            raise InputError(
                f"{mechanism}: is of one model alone; with `neighbour` give expert-cache",
                argument="mechanisms",
            )
        return Neighbours.name
    if job.gpus == 1 or mechanism == MultiGpu.name:
        return mechanism
    if mechanism != ExpertCache.name:
        raise InputError(
            f"{mechanism}: is of one GPU; with `gpus` {job.gpus} give expert-cache",
            argument="mechanisms",
        )
    return MultiGpu.name


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
        elif need in OF_ROWS and job.workload.unit == "access":
            raise InputError(
                f"policy {job.policy.name} needs {OF_ROWS[need]}, which single accesses "
                "have not; leave out `unit` access"
            )


OF_ROWS = {
    "router_scores": "a layer's router scores",
    "router_guesses": "routers' guesses",
}
MISSING = {
    "router_guesses": "needs guesses of the next layers' routers, which this trace lacks; record it "
    "with --scores-next",
    "router_scores": "needs all router scores, which this trace lacks; record it with --scores",
    "ranked_ids": "needs expert ids in rank order, but this trace has them sorted",
}
