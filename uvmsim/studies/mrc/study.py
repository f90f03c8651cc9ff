"""All curves one call of `uvmsim mrc` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.policies.registry import parse, spec_of
from uvmsim.runs.decoding import Decoding
from uvmsim.runs.job import Job
from uvmsim.studies.answer import Answer
from uvmsim.studies.decodings import notes_of, the_decoding
from uvmsim.studies.mrc.curves import Curve, lru_curve, policy_curve, sampled_lru_curve
from uvmsim.studies.resolve import base_job, load_trace, profile_of, slots_of, trace_json
from uvmsim.studies.scenario import DEFAULT_HARDWARE, POOLS, Progress, Scenario, scenario_of
from uvmsim.studies.simulate import check_needs
from uvmsim.version import __version__
from uvmsim.workload import Workload, build_workload

DEFAULT_SHARES = ("6.25%", "12.5%", "25%", "37.5%", "50%", "75%", "100%")
DEFAULT_POLICIES = ("belady",)
"""Beside LRU."""


@dataclass(frozen=True, repr=False)
class Curves(Answer):
    """The answer: for each kind of pool, LRU's whole curve and the others' at the sizes asked for."""

    printer: ClassVar[str] = "uvmsim.report.mrc_table:print_curves"

    scenario: Scenario
    sample: float | None
    trace: RoutingTrace
    workload: Workload
    sizes: list[int]
    by_pool: dict[str, list[Curve]]
    decoding: Decoding | None = None
    """The batch and the drafts that were asked for."""
    notes: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> Sequence[Curve]:
        """One a kind of pool and policy."""
        return [c for curves in self.by_pool.values() for c in curves]

    def rows(self) -> list[dict[str, Any]]:
        """One row a point of a curve."""
        return [
            {
                "pool": pool,
                "policy": c.policy,
                "slots": int(c.slots[i]),
                "misses": c.misses[i].item(),
                "accesses": c.accesses,
                "miss_ratio": float(c.ratio[i]),
                "standard_error": None if c.error is None else float(c.error[i]),
            }
            for pool, curves in self.by_pool.items()
            for c in curves
            for i in range(len(c.slots))
        ]

    def to_json(self) -> dict[str, Any]:
        """One object of plain JSON types."""
        curves = [
            {
                "pool": pool,
                "policy": c.policy,
                "slots": c.slots.tolist(),
                "misses": c.misses.tolist(),
                "accesses": c.accesses,
                "standard_error": None if c.error is None else c.error.tolist(),
            }
            for pool, curves in self.by_pool.items()
            for c in curves
        ]
        return {
            "uvmsim": __version__,
            "trace": trace_json(self.trace, self.workload),
            "unit": self.scenario.unit,
            "sample": self.sample,
            "curves": curves,
        } | (self.decoding.to_json() | {"notes": self.notes} if self.decoding else {})


def mrc(
    scenario: Scenario | Any = None,
    *,
    sample: float | None = None,
    progress: Progress | None = None,
) -> Curves:
    """Miss-ratio curves of a scenario, or of a trace (a path, a `RoutingTrace`; None: the bundled).

    LRU's curve is exact for every size, from one pass over the trace; ``sample`` estimates it from that
    share of the trace. Other policies (``policies``; Belady's MIN) are simulated at ``slots`` (6.25 %
    to 100 %). Without ``pool`` both kinds of pool are looked at. No times: model, hardware and sizes
    in bytes do not matter. ``progress`` as in `uvmsim.compare`. Raises `InputError`.
    """
    s = scenario_of(scenario)
    s = s.or_else(policies=DEFAULT_POLICIES, slots=DEFAULT_SHARES)
    trace = load_trace(s.trace, s.limit)
    notes: list[str] = []
    decoding = the_decoding(s)
    if decoding is not None:
        trace, notes = decoding.of(trace, s.seed)
        notes += notes_of([decoding])[:1]
    w = build_workload(trace, s.unit)
    total = w.n_layers * w.n_experts
    given: Any = s.slots
    sizes = sorted({slots_of(x, total) for x in given})
    # No times are asked for: any size of expert, any machine will do.
    model = Model.from_info(trace.meta.model, expert_bytes=1 << 20)
    base = base_job(s, w, model, Hardware.load(DEFAULT_HARDWARE), profile_of(s, w))
    named: Any = s.policies
    specs = [parse("lru"), *(spec_of(p) for p in named if p != "lru")]
    for spec in specs[1:]:
        check_needs(replace(base, policy=spec), trace)
    pools = POOLS if s.pool is None else (s.pool,)
    by_pool: dict[str, list[Curve]] = {}
    done, todo = 0, len(pools) * len(specs)
    for pool in pools:
        job = replace(base, pool=pool)
        each = 1 if pool == "global" else w.n_layers
        fitting = [n for n in sizes if n // each >= (w.top_k if s.unit == "event" else 1)]
        if not fitting and s.pool is not None:
            raise InputError(
                f": no size gives {pool} pools of {w.top_k} slots or more", argument="slots"
            )
        by_pool[pool] = []
        for i, spec in enumerate(specs):
            if progress:
                progress(done, todo, f"{spec.name}, {pool}")
            if i:
                by_pool[pool].append(policy_curve(job, spec, fitting))
            elif sample is not None:
                by_pool[pool].append(sampled_lru_curve(w, sample, pool, s.seed))
            else:
                by_pool[pool].append(_whole_lru(job, fitting))
            done += 1
    return Curves(s, sample, trace, w, sizes, by_pool, decoding, notes)


def _whole_lru(job: Job, sizes: list[int]) -> Curve:
    """The one-pass curve, and simulated points for pools narrower than the widest event."""
    curve = lru_curve(job.workload, job.pool)
    narrow = [n for n in sizes if len(curve.slots) == 0 or n < curve.slots[0]]
    if not narrow:
        return curve
    waves = policy_curve(job, parse("lru"), narrow)
    return replace(
        curve,
        slots=np.concatenate((waves.slots, curve.slots)),
        misses=np.concatenate((waves.misses, curve.misses)),
    )


def at(curve: Curve, slots: int, each: int) -> float | None:
    """The curve's miss ratio at a pool size (rounded down to whole slots a layer), None if unknown."""
    where = np.flatnonzero(curve.slots == slots // each * each)
    return float(curve.ratio[where[0]]) if len(where) else None
