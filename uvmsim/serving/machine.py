"""A load on any mechanism: passes and their times, each found from the other.

When a request shares a pass with others depends on how long the passes before took, and how long a pass
takes on which passes came before. So a load is played with times that are guessed at first, its
passes are simulated as one run (`uvmsim.mechanisms`, unchanged), and it is played again with the times
found, until nothing changes. What is before the first difference is right for good, so each round gets
further, and the end is what a server would have done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from traces.errors import InputError
from uvmsim.clocks import clock as clock_named
from uvmsim.mechanisms import mechanism as mechanism_named
from uvmsim.mechanisms.base import Planned
from uvmsim.runs.job import DoesNotFit, Job
from uvmsim.runs.outcome import Outcome, about_job
from uvmsim.runs.played import Played
from uvmsim.serving.load import Load
from uvmsim.serving.passes import Schedule, schedule, trace_of
from uvmsim.serving.server import Server
from uvmsim.serving.source import Source
from uvmsim.workload import build_workload

ROUNDS = 200


@dataclass(frozen=True)
class Run:
    """A load that was served."""

    schedule: Schedule
    pass_ns: np.ndarray
    """int64 [S]: duration of each forward pass, without the pause before it."""
    outcome: Outcome
    """What the mechanism counts, of all passes together; no passes where the model does not fit."""
    rounds: int


def serve_job(
    job: Job, mechanism: str, load: Load, server: Server, source: Source, clock: str = "fast"
) -> Run:
    """Serve ``load``; of ``job`` all but the workload counts. Raises `InputError`.

    With `Server.warmup` the first request is served before the clock starts (`Load.warmed`).
    """
    load = load.warmed() if server.warmup else load
    drop = mechanism == "cpu-offload" or getattr(job.policy, "copies", False)
    pass_ns = np.zeros(0, np.int64)
    made = schedule(load, server, pass_ns)
    for i in range(1, ROUNDS + 1):
        workload = build_workload(trace_of(made, source, drop))
        outcome, pass_ns = _simulated(replace(job, workload=workload), mechanism, clock, made.idle)
        if outcome.does_not_fit is not None:
            return Run(made, pass_ns, outcome, i)
        again = schedule(load, server, pass_ns)
        if again.same_as(made):
            return Run(again, pass_ns, outcome, i)
        made = again
    raise InputError(
        f"after {ROUNDS} rounds requests still fall into other passes; serve fewer at a time, or use "
        "`mechanisms` expert-cache"
    )


def _simulated(job: Job, name: str, clock: str, idle: np.ndarray) -> tuple[Outcome, np.ndarray]:
    """The outcome of all passes, and how long each took. In a pause the GPU rests and copies that are
    under way go on."""
    mechanism = mechanism_named(name)
    if not isinstance(mechanism, Planned):
        outcome = mechanism.run(job, clock)
        return outcome, outcome.step_ns
    play = clock_named(clock)
    try:
        plan = mechanism.plan(job)
    except DoesNotFit as err:
        failed = Outcome(job, name, does_not_fit=err, about=about_job(job, name))
        return failed, np.zeros(0, np.int64)
    first = np.concatenate(([0], plan.step_wave_hi[:-1]))
    pre = plan.pre_ns.copy()
    pre[first] += idle
    rested = replace(plan, pre_ns=pre)
    outcome = mechanism.played(job, Played(rested, play(rested)))
    return outcome, outcome.step_ns - idle
