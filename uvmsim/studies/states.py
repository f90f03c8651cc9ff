"""What policies have learned before, given to the runs of a study, and saved from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from traces.errors import InputError
from uvmsim.policies.registry import PolicySpec
from uvmsim.policies.saved import (
    Saved,
    Shape,
    State,
    check_state_target,
    learning,
    read_state,
    write_state,
)
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome
from uvmsim.runs.played import Played
from uvmsim.studies.resolve import Resolved
from uvmsim.studies.scenario import Scenario

Todo = list[tuple[Job, str]]
"""Jobs and their mechanisms."""


def shape_of(r: Resolved) -> Shape:
    """The model whose routing the trace is."""
    w = r.workload
    return Shape(r.trace.meta.model.name, w.n_layers, w.n_experts, w.top_k)


def with_states(s: Scenario, r: Resolved, todo: Todo, *, cold: bool) -> Todo:
    """The jobs, those of policies that the scenario's ``state`` knows with it (``cold``: and without).

    Raises `InputError` where a file is given and no policy has a use for it; said before anything runs.
    """
    if s.state_out is not None:
        _check_target(s.state_out, [job for job, _ in todo])
        todo = [(replace(job, keeps_state=True), mechanism) for job, mechanism in todo]
    if s.state is None:
        return todo
    try:
        state = read_state(s.state, shape_of(r))
    except InputError as err:
        raise InputError(str(err), argument="state") from None
    made: Todo = []
    for job, mechanism in todo:
        known = _knows(state, job)
        if cold or not known:
            made.append((job, mechanism))
        if known:
            _check_fits(state, job)
            made.append((replace(job, state=state), mechanism))
            _note_lacking(state, job, r.notes)
    if not any(job.state for job, _ in made):
        has = ", ".join(dict.fromkeys(x.policy for x in state.saved)) or "nothing"
        raise InputError(
            f"{s.state}: holds {has}, and none of the policies is that", argument="state"
        )
    return made


def save(s: Scenario, r: Resolved, runs: Iterable[Outcome]) -> None:
    """Write what the runs' policies have learned to the scenario's ``state_out``; where a policy ran
    warm and from nothing, of the warm run."""
    if s.state_out is None:
        return
    played = [(run, run.trail.plan.saved) for run in runs if isinstance(run.trail, Played)]
    found: list[Saved] = []
    for warm in (True, False):
        found += [x for run, saved in played if run.job.warm == warm for x in saved]
    write_state(s.state_out, shape_of(r), found)


def _knows(state: State, job: Job) -> bool:
    return isinstance(job.policy, PolicySpec) and state.knows(job.policy)


def _check_fits(state: State, job: Job) -> None:
    assert isinstance(job.policy, PolicySpec)
    try:
        for part in learning(job.policy):
            state.of(part)
    except InputError as err:
        raise InputError(str(err), argument="state") from None


def _note_lacking(state: State, job: Job, notes: list[str]) -> None:
    assert isinstance(job.policy, PolicySpec)
    for part in state.lacks(job.policy):
        note = f"{state.path} has nothing of {part}, which begins from nothing in {job.policy.name} too"
        if note not in notes:
            notes.append(note)


def _check_target(path: str | os.PathLike[str], todo: Sequence[Job]) -> None:
    try:
        check_state_target(path)
    except InputError as err:
        raise InputError(str(err), argument="state_out") from None
    specs = [job.policy for job in todo if isinstance(job.policy, PolicySpec)]
    if not any(learning(spec) for spec in specs):
        names = ", ".join(dict.fromkeys(spec.name for spec in specs)) or "no policy"
        raise InputError(
            f"{path}: nothing to save: {names} learns nothing (`learned` and `learned-next` do)",
            argument="state_out",
        )
