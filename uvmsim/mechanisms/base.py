"""What every mechanism is."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar

import numpy as np

from traces.errors import InputError
from uvmsim.clocks import clock as clock_named
from uvmsim.policies.kinds import PolicyKind
from uvmsim.runs.job import DoesNotFit, Job
from uvmsim.runs.outcome import Outcome, about_job
from uvmsim.runs.plan import Plan
from uvmsim.runs.played import Played, check


class Mechanism:
    """How a missing byte is served."""

    name: ClassVar[str] = ""
    decides: ClassVar[PolicyKind | None] = None
    """The kind of policy that is for it; None: it has nothing to decide."""
    records_faults: ClassVar[bool] = False
    """Whether `export_faults` has anything to write."""

    def run(self, job: Job, clock: str = "fast", record: bool = False) -> Outcome:
        """The job's outcome by one of `uvmsim.clocks.CLOCKS`. ``record``: keep what an export needs.
        Raises `InputError`."""
        raise NotImplementedError

    def export_faults(self, run: Outcome, path: str, about: dict[str, Any]) -> None:
        """Write the driver's events of a recorded run to a fault trace. Raises `InputError`."""
        raise InputError(f"{self.name}: no driver pages, nothing to write", argument="mechanisms")

    def decided_by(self, job: Job) -> Hashable | None:
        """What of the machine bears on what the policy decides; None: there is no telling. Jobs that
        are alike in this and in all but the machine may share decisions (`again`)."""
        return None

    def again(self, before: Outcome, job: Job) -> Outcome:
        """The outcome of a job that shares the decisions of an earlier one."""
        return self.run(job)


class Planned(Mechanism):
    """A mechanism that writes a `Plan`, which any clock can play."""

    def plan(self, job: Job) -> Plan:
        """What is copied and computed, in order. Raises `DoesNotFit`, `InputError`."""
        raise NotImplementedError

    def run(self, job: Job, clock: str = "fast", record: bool = False) -> Outcome:
        play = clock_named(clock)
        try:
            plan = self.plan(job)
        except DoesNotFit as err:
            return Outcome(job, self.name, does_not_fit=err, about=about_job(job, self.name))
        return self.played(job, Played(plan, play(plan)))

    def played(self, job: Job, trail: Played) -> Outcome:
        """The outcome of a plan once played; asserts the invariants of a finished run."""
        check(trail)
        plan = trail.plan
        return Outcome(
            job, self.name, np.diff(trail.timeline.step_end, prepend=0), plan.counters, plan.slots,
            trail, plan.notes, about=about_job(job, self.name),
        )  # fmt: skip
