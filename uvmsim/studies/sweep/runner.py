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
from uvmsim.mechanisms import mechanism as mechanism_named
from uvmsim.runs.job import DoesNotFit, Job
from uvmsim.runs.outcome import Outcome
from uvmsim.studies.simulate import check_needs
from uvmsim.studies.sweep.cells import Cell, TraceFacts
from uvmsim.studies.sweep.config import in_words
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
        self._before: Outcome | None = None

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
            return failed(cell, in_words(err))
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
        job = Job(
            workload, cell.model, cell.hardware,
            policy=mechanism.decides.of(cell.policy) if cell.policy and mechanism.decides else None,
            threshold=cell.threshold, ctx=cell.ctx,
            slots=cell.slots, pool=cell.pool, reset=cell.reset, write_back=cell.write_back,
            pinned=cell.pinned, ncmoe=cell.ncmoe, seed=cell.seed, profile=profile,
            policy_time=cell.policy_time,
        )  # fmt: skip
        check_needs(job, trace)
        outcome = self.outcome(job, cell)
        if outcome.does_not_fit is not None:
            raise outcome.does_not_fit
        told = {k: v for k, v in outcome.measures().items() if k not in cell.row}
        return {"status": OK} | flatten(told)

    def outcome(self, job: Job, cell: Cell) -> Outcome:
        """The outcome of a job; decisions are taken over from the last one where they are the same."""
        mechanism = mechanism_named(cell.mechanism)
        decided = mechanism.decided_by(job)
        if decided is None:
            return mechanism.run(job)
        # What decides: everything of the cell but the machine, of which the mechanism says it all.
        share = (
            cell.trace.sha256, cell.limit, cell.unit, cell.model, cell.policy, decided,
            cell.pool, cell.reset, cell.write_back, cell.seed, cell.profile and cell.profile.sha256,
            cell.policy_time,
        )  # fmt: skip
        if self._before is None or share != self._share:
            self._share, self._before = None, None  # frees the old one before the new is made
            self._before = mechanism.run(job)
            self._share = share
        else:
            self._before = mechanism.again(self._before, job)
        return self._before

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
