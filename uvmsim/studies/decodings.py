"""Batches and drafts that a scenario asks for, put to its trace."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.files.schema import DECODE
from traces.routing.drafts import Draft
from uvmsim.mechanisms.event_plan import event_plan
from uvmsim.runs.decoding import Decoding, DraftCost
from uvmsim.runs.job import Job
from uvmsim.runs.llama_times import detailed
from uvmsim.studies.scenario import Scenario
from uvmsim.workload import Workload

FIELDS = ("batch", "draft")


def decodings_of(s: Scenario) -> list[Decoding]:
    """Every batch with every draft that the scenario names; none where it names neither.

    Raises `InputError` where another field says how drafts are counted and there are none.
    """
    batches, drafts = (_several(getattr(s, name)) for name in FIELDS)
    made = [Draft.parse(text) for text in drafts]
    if not any(made):
        for name in ("draft_reject", "draft_cost"):
            if getattr(s, name) is not None:
                raise InputError(": there are no drafts; give `draft` 3:0.8, say", argument=name)
    if not batches and not drafts:
        return []
    cost = DraftCost() if s.draft_cost is None else DraftCost.parse(s.draft_cost)
    how: dict[str, Any] = {"reject": s.draft_reject or "true", "cost": cost}
    found = [
        Decoding(b, d, **how) if d is not None else Decoding(b)
        for b, d in product(batches or [1], made or [None])
    ]
    if s.reset == "sequence" and any(d.batch > 1 for d in found):
        raise InputError(
            "sequence: sequences of a `batch` share the pool; leave it out", argument="reset"
        )
    if s.state_out is not None and len(found) > 1:
        raise InputError(
            ": give one `batch` and one `draft`, so it is clear which is saved", "state_out"
        )
    return found


def the_decoding(s: Scenario) -> Decoding | None:
    """The one decoding, for a study that takes no several. Raises `InputError`."""
    for name in FIELDS:
        if isinstance(getattr(s, name), tuple):
            told = ",".join(str(x) for x in getattr(s, name))
            raise InputError(f"{told}: give one", argument=name)
    return next(iter(decodings_of(s)), None)


def refuse(s: Scenario, study: str) -> None:
    """`InputError` where a study that knows no batches and drafts is asked for some."""
    for name in FIELDS:
        if getattr(s, name) is not None:
            raise InputError(f": {study} takes none; compare, mrc and replay do", argument=name)


def notes_of(found: list[Decoding]) -> list[str]:
    """What drafts leave out, in a line each."""
    drafts = [d for d in found if d.draft is not None]
    if not drafts:
        return []
    first = drafts[0]
    borrowed = {
        "true": "the true token of its place, which flatters the union of experts",
        "random": "a random decoded token, which has less in common than a draft would",
    }[first.reject]
    return [
        f"a rejected draft is not in the trace: it is routed as {borrowed} (--draft-reject)",
        f"drafting a token costs {first.cost} of the GPU's time (--draft-cost)"
        if first.cost != DraftCost()
        else "drafting costs nothing here; a drafter or an MTP head does (--draft-cost)",
    ]


def job_of(job: Job, d: Decoding, workload: Workload) -> Job:
    """``job`` with the workload of its trace decoded so: the KV cache holds all sequences, and drafts
    take their time."""
    held = None
    if d.batch > 1 and job.ctx is None and workload.passes is not None:
        held = int(workload.passes.held.max(initial=1))
    return replace(job, workload=with_cost(workload, job, d), decoding=d, ctx=job.ctx or held)


def with_cost(workload: Workload, plain: Job, d: Decoding) -> Workload:
    """``workload`` with the drafter's time in each step: as many of its passes as the step has drafts
    of one sequence. ``plain``: the job of the trace as it was recorded."""
    if d.draft is None or d.cost == DraftCost() or workload.passes is None:
        return workload
    each = d.cost.share * pass_ns(plain) if d.cost.share else float(d.cost.ns)
    return replace(workload, step_added_ns=np.rint(workload.passes.drafts * each).astype(np.int64))


def pass_ns(job: Job) -> float:
    """GPU time of a decode step with all experts resident, ns: the mean of the job's trace."""
    w = job.workload
    plan = event_plan(job, times=detailed(job))
    decode = (w.step_phase == DECODE)[w.event_step[plan.wave_event]]
    steps = int((w.step_phase == DECODE).sum())
    return float((plan.pre_ns + plan.compute_ns)[decode].sum()) / max(steps, 1)


def _several(value: Any) -> tuple[Any, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)
