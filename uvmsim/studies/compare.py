"""Many policies on one trace: what `uvmsim compare` does, as a library."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from traces.jit import kept_anew
from traces.routing import RoutingTrace
from uvmsim.experts.decisions import Decisions
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.policies.kinds import EXPERTS
from uvmsim.policies.registry import parse
from uvmsim.runs.decoding import Decoding
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome
from uvmsim.studies.ahead import Ahead
from uvmsim.studies.answer import Answer, flat
from uvmsim.studies.choice import policies_for
from uvmsim.studies.resolve import (
    Resolved,
    hardware_json,
    jobs,
    label,
    model_json,
    resolve,
    slots_of,
    trace_json,
)
from uvmsim.studies.scenario import DEFAULT_HARDWARE, Progress, Scenario, scenario_of
from uvmsim.studies.simulate import on_gpus, simulate
from uvmsim.studies.states import save, with_states
from uvmsim.version import __version__
from uvmsim.workload import Workload, events_kernel

BUNDLED_SIZE = "25%"
"""Pool of the bundled trace where neither slots nor memory is given."""


@dataclass(frozen=True, repr=False)
class Comparison(Answer):
    """The runs and what they share."""

    printer: ClassVar[str] = "uvmsim.report.table:print_comparison"

    scenario: Scenario
    trace: RoutingTrace
    workload: Workload
    model: Model
    hardware: Hardware
    """The first, where there are several."""
    runs: list[Outcome]
    belady_misses: dict[tuple[int, Decoding | None], int]
    """By slots, and batch and draft where some were asked for: misses of Belady's MIN, the fewest any
    policy without prefetch can have."""
    notes: list[str]
    machines: tuple[Hardware, ...] = ()
    """All that were compared, where they are several."""

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """One a mechanism, size and policy."""
        return self.runs

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a run; columns as the keys of `to_json`, nested names joined by ``_``."""
        return [flat(run) for run in self._runs_json()]

    def to_json(self) -> dict[str, Any]:
        """One object of plain JSON types; the same input gives the same bytes."""
        asked = self.scenario.to_json()
        return {
            "uvmsim": __version__,
            "trace": trace_json(self.trace, self.workload),
            "model": model_json(self.model),
            "hardware": hardware_json(self.machines or (self.hardware,)),
            "options": asked | {"policies": asked.get("policies", EXPERTS.defaults)},
            "notes": self.notes,
            "runs": self._runs_json(),
        }

    def _runs_json(self) -> list[dict[str, Any]]:
        runs = []
        for run in self.runs:
            d = run.to_json()
            if isinstance(self.scenario.ncmoe, tuple) and run.mechanism == "cpu-offload":
                d["ncmoe"] = run.job.ncmoe
            least = self.belady_misses.get((d.get("slots", -1), run.job.decoding))
            if run.pooled and least:
                d["belady_misses"] = least
                d["misses_over_belady"] = d["misses"] / least
            if run.job.warm and run.does_not_fit is None:
                d["over_cold"] = self._over_cold(run, d)
            runs.append(d)
        return runs

    def _over_cold(self, run: Outcome, d: dict[str, Any]) -> dict[str, Any]:
        """What a warm run has more than the one from nothing, which stands right before it."""
        at = next(i for i, other in enumerate(self.runs) if other is run)
        before = self.runs[at - 1].to_json()
        keys = ("hits", "hit_rate", "decode_tokens_per_s", "prefill_tokens_per_s")
        return {k: d[k] - before[k] for k in keys if d[k] is not None}


def compare(
    scenario: Scenario | Any = None, progress: Progress | None = None, *, processes: int = 1
) -> Comparison:
    """Run every mechanism and policy of a scenario at every pool size on every machine, on a simulated
    clock.

    ``scenario`` may be a trace alone (a path, a `RoutingTrace`; None: the bundled). Without ``slots``
    the pool is what memory holds (of the bundled trace: 25 %). ``progress`` is called with (runs done,
    runs in all, what runs next). ``processes``: above 1 a second one compiles ahead where nothing was
    compiled before; a script then needs an ``if __name__ == "__main__"`` around its work. Raises
    `InputError`.
    """
    s = scenario_of(scenario)
    s = s.or_else(hardware=DEFAULT_HARDWARE, mechanisms="expert-cache", pool="global")
    r, todo = _asked(s)
    for job, mechanism in todo:
        on_gpus(job, mechanism)
    runs = []
    cold = processes > 1 and len(todo) > 2 and kept_anew(events_kernel)
    with Ahead(s, todo, _runs_of) if cold else nullcontext() as ahead:
        for i, (job, mechanism) in enumerate(todo):
            if progress:
                progress(i, len(todo), label(job, mechanism))
            if ahead:
                ahead.ready(i)
            runs.append(simulate(job, mechanism, s.engine))
    if progress:
        progress(len(todo), len(todo), "")
    least = _belady(runs)
    pooled = [x.counters for x in runs if x.pooled and x.counters]
    if pooled and not any(c.evictions for c in pooled):
        r.notes.append(
            "no expert ever had to leave, so policies do not differ; give fewer --slots (25%) or "
            "less --vram"
        )
    save(s, r, runs)
    several = r.machines if len(r.machines) > 1 else ()
    return Comparison(s, r.trace, r.workload, r.model, r.hardware, runs, least, r.notes, several)


def _asked(s: Scenario) -> tuple[Resolved, list[tuple[Job, str]]]:
    """What a scenario names, and its runs."""
    mechanisms: Any = s.mechanisms
    policies: Any = s.policies
    chosen = policies_for(mechanisms, policies)
    r = resolve(s, several=True)
    sizes = sizes_of(s, r)
    ways = [r.decoded(d) for d in r.decodings] or [r]
    todo = [
        x for way in ways for hw in r.machines for x in jobs(way.on(hw), mechanisms, sizes, chosen)
    ]
    return r, with_states(s, r, todo, cold=True)


def _runs_of(s: Scenario) -> list[tuple[Job, str]]:
    return _asked(s)[1]


def sizes_of(s: Scenario, r: Resolved) -> list[int | None]:
    """Slots of each size asked for; of the bundled trace, where none is, `BUNDLED_SIZE`; else None,
    what memory holds."""
    given: Any = s.slots
    if not given and s.trace is None and s.vram is None:
        given = (BUNDLED_SIZE,)
    return [slots_of(x, r.experts) for x in given] or [None]


def _belady(runs: list[Outcome]) -> dict[tuple[int, Decoding | None], int]:
    """Misses of MIN for every pool size, batch and draft among the runs (computed where it was not
    asked for)."""
    pooled = [r for r in runs if r.counters is not None and r.pooled]
    least = {
        (r.slots, r.job.decoding): r.counters.misses
        for r in pooled
        if r.counters and r.policy == "belady"
    }
    for run in pooled:
        key = (run.slots, run.job.decoding)
        if key not in least and (run.job.gpus > 1 or run.job.tenants):
            bound = simulate(replace(run.job, policy=parse("belady")), run.mechanism).counters
            assert bound is not None
            least[key] = bound.misses
        elif key not in least:
            alone = Decisions(replace(run.job, policy=parse("belady")))
            alone.serve_all()
            least[key] = alone.counters().misses
    return least
