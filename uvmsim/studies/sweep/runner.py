"""Running cells: what neighbours share (trace, decisions, durations) is made once.

What a policy decides does not depend on how fast anything is. So cells that differ in link, GPU or
pinning alone keep the plan of the first of them: only durations are computed anew, and the clock
runs again. `uvmsim.studies.simulate` gives the same rows, one at a time.
"""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.clocks import fast
from uvmsim.experts.pricing import price
from uvmsim.mechanisms import mechanism as mechanism_named
from uvmsim.policies.pages.phases import parse_phased
from uvmsim.policies.registry import parse
from uvmsim.runs.job import DoesNotFit, Job, capacities
from uvmsim.runs.outcome import Result, measures
from uvmsim.runs.plan import Plan
from uvmsim.studies.simulate import check_needs, check_result
from uvmsim.studies.sweep.cells import Cell, TraceFacts
from uvmsim.studies.sweep.rows import ERROR, OK, OUT_OF_MEMORY, flatten
from uvmsim.studies.sweep.source import open_trace, same_trace
from uvmsim.workload import Workload, build_workload

KEEP = 2
"""Workloads kept: the trace at hand and a profile, or the trace before it."""


class Runner:
    """Runs cells one after another; not for two threads at once."""

    def __init__(self) -> None:
        self._workloads: OrderedDict[tuple[Any, ...], tuple[RoutingTrace, Workload]] = OrderedDict()
        self._share: tuple[Any, ...] | None = None
        self._plan: tuple[Job, Plan] | None = None

    def rows(self, cells: list[Cell]) -> Iterator[dict[str, Any]]:
        """One row a cell, in order; whatever goes wrong in a cell becomes its row."""
        for cell in cells:
            yield self.row(cell)

    def row(self, cell: Cell) -> dict[str, Any]:
        """The row of one cell."""
        try:
            return cell.row | self._run(cell)
        except DoesNotFit as err:
            return cell.row | {
                "status": OUT_OF_MEMORY, "error": str(err),
                "needed_bytes": err.needed, "available_bytes": err.available,
            }  # fmt: skip
        except InputError as err:
            return failed(cell, " ".join(str(err).split()))
        except Exception as err:
            return failed(cell, described(err))

    def _run(self, cell: Cell) -> dict[str, Any]:
        if cell.error is not None or cell.model is None:
            raise InputError(cell.error or "no model")
        trace, workload = self._workload(cell.trace, cell.limit, cell.unit)
        profile = self._workload(cell.profile, None, "event")[1] if cell.profile else None
        if profile and (profile.n_layers, profile.n_experts) != (
            workload.n_layers,
            workload.n_experts,
        ):
            raise InputError("the profile was made by a model of another shape")
        mechanism = mechanism_named(cell.mechanism)
        paged = mechanism.grain == "page"
        job = Job(
            workload, cell.model, cell.hardware,
            policy=parse(cell.policy) if cell.policy and not paged else None,
            page_policy=parse_phased(cell.policy) if cell.policy and paged else None,
            threshold=cell.threshold,
            slots=cell.slots, pool=cell.pool, reset=cell.reset, write_back=cell.write_back,
            pinned=cell.pinned, ncmoe=cell.ncmoe, seed=cell.seed, profile=profile,
        )  # fmt: skip
        if paged:
            result = mechanism.run(job, "fast")
            assert result is not None
            told = {k: v for k, v in result.to_json().items() if k not in cell.row}
            return {"status": OK} | flatten(told)
        check_needs(job, trace)
        plan = self.plan(job, cell)
        timeline = fast.run(plan)
        check_result(Result(job, cell.mechanism, plan, timeline))
        return {"status": OK} | flatten(measures(job, plan, timeline))

    def plan(self, job: Job, cell: Cell) -> Plan:
        """The plan of a job; decisions are taken over from the last one where they are the same."""
        mechanism = mechanism_named(cell.mechanism)
        if not mechanism.takes_policy:
            return mechanism.plan(job)
        # What decides: everything of the cell but the machine, of which only the slots count.
        capacity, _ = capacities(job)
        share = (
            cell.trace.sha256, cell.limit, cell.unit, cell.model, cell.policy, capacity.tobytes(),
            cell.pool, cell.reset, cell.write_back, cell.seed, cell.profile and cell.profile.sha256,
        )  # fmt: skip
        if self._plan is None or share != self._share:
            self._share, self._plan = None, None  # frees the old one before the new is made
            self._plan = (job, mechanism.plan(job))
            self._share = share
            return self._plan[1]
        plan = price(self._plan[1], job, self._plan[0].hardware)
        self._plan = (job, plan)
        return plan

    def _workload(
        self, facts: TraceFacts, limit: int | None, unit: str
    ) -> tuple[RoutingTrace, Workload]:
        key = (facts.path, facts.sha256, limit, unit)
        if key not in self._workloads:
            whole = open_trace(facts.path)
            same_trace(facts, whole)
            trace = open_trace(facts.path, limit) if limit is not None else whole
            while len(self._workloads) >= KEEP:
                self._workloads.popitem(last=False)
            self._workloads[key] = (trace, build_workload(trace, unit))
        self._workloads.move_to_end(key)
        return self._workloads[key]


def failed(cell: Cell, error: str) -> dict[str, Any]:
    """The row of a cell that could not be run."""
    return cell.row | {"status": ERROR, "error": error}


def described(err: Exception) -> str:
    """An unexpected exception in one line, with the place it came from."""
    frames = traceback.extract_tb(err.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return " ".join(f"{type(err).__name__}: {err}{place}".split())
