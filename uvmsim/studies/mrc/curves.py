"""Miss-ratio curves of a workload: LRU's exactly for all sizes, any policy's at chosen ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from traces.errors import InputError
from uvmsim.experts.decisions import Decisions
from uvmsim.policies.registry import PolicySpec
from uvmsim.runs.job import Job
from uvmsim.studies.mrc.stack import stack_histogram
from uvmsim.workload import Workload


@dataclass(frozen=True)
class Curve:
    """Misses by pool size."""

    policy: str
    slots: np.ndarray
    """int64 [n]: slots of all pools together, ascending."""
    misses: np.ndarray
    """int64 [n] (float64 where sampled)."""
    accesses: int
    error: np.ndarray | None = None
    """float64 [n]: standard error of ``misses`` where it is an estimate."""

    @property
    def ratio(self) -> np.ndarray:
        """float64 [n]: misses / accesses."""
        return self.misses / max(self.accesses, 1)


def lru_curve(
    w: Workload, pool: str = "global", count_from: int = 0, least: int | None = None
) -> Curve:
    """LRU's misses at every pool size that holds the widest event (smaller ones serve it in waves,
    which is no stack algorithm: `policy_curve` simulates those).

    Events before number ``count_from`` warm the pool up and are not counted. ``least`` is the
    smallest pool wanted (a layer's, with ``pool="per-layer"``); default: the widest event.
    """
    if pool == "global":
        top, step = w.n_layers * w.n_experts, 1
        hist, first = stack_histogram(w.ids, w.event_lo, top, count_from)
    else:
        top, step = w.n_experts, w.n_layers
        hist, first = np.zeros(top, np.int64), 0
        for layer in range(w.n_layers):
            skip = int((w.event_layer[:count_from] == layer).sum())
            h, f = stack_histogram(*layer_events(w, layer), top, skip)
            hist, first = hist + h, first + f
    beyond = np.concatenate((np.cumsum(hist[::-1])[::-1], [0]))
    each = np.arange(max(w.widest, 1) if least is None else least, top + 1)
    counted = len(w.ids) - int(w.event_lo[count_from])
    return Curve("lru", each * step, first + beyond[each], counted)


def layer_events(w: Workload, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (from 0 within the layer) and event bounds of one layer's events."""
    mine = np.flatnonzero(w.event_layer == layer)
    sizes = np.diff(w.event_lo)[mine]
    lo = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    take = np.repeat(w.event_lo[mine] - lo[:-1], sizes) + np.arange(lo[-1])
    return w.ids[take] % w.n_experts, lo


def policy_curve(job: Job, spec: PolicySpec, slots: list[int]) -> Curve:
    """Any policy's misses at the sizes given, by running it."""
    done, misses = [], []
    for n in sorted(set(slots)):
        run = replace(job, policy=spec, slots=n)
        decisions = Decisions(run)
        decisions.serve_all()
        done.append(decisions.slots)
        misses.append(decisions.counters().misses)
    return Curve(spec.name, np.array(done), np.array(misses), len(job.workload.ids))


WINDOWS = 20
WARM_UP = 512
"""Forward passes before a window that bring its pool into a steady state."""


def sampled_lru_curve(w: Workload, share: float, pool: str = "global", seed: int = 0) -> Curve:
    """LRU's curve from systematic samples in time, for traces too long for a full pass.

    `WINDOWS` windows, evenly spaced from a random start, together ``share`` of the forward passes,
    each after a warm-up of `WARM_UP` passes that is not counted (SMARTS: Wunderlich, Wenisch, Falsafi
    and Hoe 2003). Their scatter gives the standard error. An expert first used within a window
    counts as a miss at every size, which bounds the tail of the curve from above. Sampling experts
    instead of time (SHARDS) does not suit a few hundred experts walked in a fixed order: it blurs
    the step where the pool holds one pass.
    """
    if not 0 < share <= 1:
        raise InputError(f"{share}: give a share above 0, at most 1", argument="sample")
    if w.n_steps < 4 * WINDOWS:
        raise InputError(
            f": the trace has only {w.n_steps} forward passes; leave it out", argument="sample"
        )
    length = max(1, int(share * w.n_steps / WINDOWS))
    stride = w.n_steps / WINDOWS
    start = np.random.default_rng(seed).random() * max(stride - length, 0)
    first_event = np.searchsorted(w.event_step, np.arange(w.n_steps + 1))
    ratios, weights = [], []
    for k in range(WINDOWS):
        a = int(start + k * stride)
        b = min(a + length, w.n_steps)
        warm, lo, hi = (int(first_event[x]) for x in (max(a - WARM_UP, 0), a, b))
        part, counted = window(w, warm, hi), lo - warm
        curve = lru_curve(part, pool, counted, max(w.widest, 1))
        ratios.append(curve.ratio)
        weights.append(curve.accesses)
    each = np.array(ratios)
    mean = np.average(each, axis=0, weights=weights)
    n = len(w.ids)
    error = each.std(axis=0, ddof=1) / np.sqrt(WINDOWS) * n
    return Curve("lru", curve.slots, mean * n, n, error)


def window(w: Workload, first: int, last: int) -> Workload:
    """Events ``first`` .. ``last - 1`` of a workload, for counting only."""
    lo, hi = w.event_lo[first], w.event_lo[last]
    return replace(
        w, ids=w.ids[lo:hi], counts=w.counts[lo:hi], event_lo=w.event_lo[first : last + 1] - lo,
        event_layer=w.event_layer[first:last], event_step=w.event_step[first:last],
    )  # fmt: skip
