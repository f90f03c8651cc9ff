"""All curves one call of `uvmsim mrc` asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import uvmsim
from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.studies.compare import DEFAULT_HARDWARE, load_trace, slots_of, trace_json
from uvmsim.studies.mrc.curves import Curve, lru_curve, policy_curve, sampled_lru_curve
from uvmsim.studies.simulate import check_needs
from uvmsim.workload import Workload, build_workload

DEFAULT_SHARES = ("6.25%", "12.5%", "25%", "37.5%", "50%", "75%", "100%")
POOLS = ("global", "per-layer")


@dataclass(frozen=True)
class Study:
    """What the user asked for; defaults are the command line's."""

    trace: str | None = None
    policies: tuple[str, ...] = ("belady",)
    slots: tuple[str, ...] = DEFAULT_SHARES
    pool: str = "both"
    unit: str = "event"
    sample: float | None = None
    limit: int | None = None
    profile: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Curves:
    """The answer: for each kind of pool, LRU's whole curve and the others' at the sizes asked for."""

    options: Study
    trace: RoutingTrace
    workload: Workload
    sizes: list[int]
    by_pool: dict[str, list[Curve]]

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
            "uvmsim": uvmsim.__version__,
            "trace": trace_json(self.trace, self.workload),
            "unit": self.options.unit,
            "sample": self.options.sample,
            "curves": curves,
        }


def study(o: Study, progress: Callable[[int, int, str], None] | None = None) -> Curves:
    """Compute the curves. Raises `InputError`; ``progress`` as in `uvmsim.studies.compare.compare`."""
    if o.seed < 0:
        raise InputError(f"--seed {o.seed}: must be 0 or more")
    trace = load_trace(o.trace, o.limit)
    w = build_workload(trace, o.unit)
    total = w.n_layers * w.n_experts
    sizes = sorted({slots_of(s, total) for s in o.slots})
    profile = build_workload(load_trace(o.profile, None)) if o.profile else None
    # No times are asked for: any size of expert, any machine will do.
    model = Model.from_info(trace.meta.model, expert_bytes=1 << 20)
    base = Job(w, model, Hardware.load(DEFAULT_HARDWARE), seed=o.seed, profile=profile)
    names = [p for p in o.policies if p != "lru"]
    for name in names:
        check_needs(replace(base, policy=parse(name)), trace)
    pools = POOLS if o.pool == "both" else (o.pool,)
    by_pool: dict[str, list[Curve]] = {}
    done, todo = 0, len(pools) * (1 + len(names))
    for pool in pools:
        job = replace(base, pool=pool)
        each = 1 if pool == "global" else w.n_layers
        fitting = [n for n in sizes if n // each >= (w.top_k if o.unit == "event" else 1)]
        if not fitting and o.pool != "both":
            raise InputError(f"--slots: no size gives {pool} pools of {w.top_k} slots or more")
        by_pool[pool] = []
        for name in ["lru", *names]:
            if progress:
                progress(done, todo, f"{name}, {pool}")
            if name != "lru":
                by_pool[pool].append(policy_curve(job, name, fitting))
            elif o.sample is not None:
                by_pool[pool].append(sampled_lru_curve(w, o.sample, pool, o.seed))
            else:
                by_pool[pool].append(_whole_lru(job, fitting))
            done += 1
    return Curves(o, trace, w, sizes, by_pool)


def _whole_lru(job: Job, sizes: list[int]) -> Curve:
    """The one-pass curve, and simulated points for pools narrower than the widest event."""
    curve = lru_curve(job.workload, job.pool)
    narrow = [n for n in sizes if len(curve.slots) == 0 or n < curve.slots[0]]
    if not narrow:
        return curve
    waves = policy_curve(job, "lru", narrow)
    return replace(
        curve,
        slots=np.concatenate((waves.slots, curve.slots)),
        misses=np.concatenate((waves.misses, curve.misses)),
    )


def at(curve: Curve, slots: int, each: int) -> float | None:
    """The curve's miss ratio at a pool size (rounded down to whole slots a layer), None if unknown."""
    where = np.flatnonzero(curve.slots == slots // each * each)
    return float(curve.ratio[where[0]]) if len(where) else None
