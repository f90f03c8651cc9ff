"""The compiled clock of several GPUs: the same times as `uvmsim.clocks.des_joint`.

It goes from one instant at which something ends to the next. At each: copies that are over arrive,
then every device goes as far as it can, then every idle engine takes a copy. All arrays are those of
the devices one after the other.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from traces.jit import compiled
from uvmsim.core.jit import inner
from uvmsim.runs.joint import OPENED, JointPlan, JointTimeline
from uvmsim.runs.plan import DEMAND, PREFETCH, Plan
from uvmsim.runs.timeline import Timeline

UNKNOWN = np.int64(-1)
FOREVER = np.iinfo(np.int64).max
GATE, DENSE, AWAY, WAIT, WORK, OVER = range(6)
"""What a device does: waits for others; dense work; CPU experts; waits for copies; experts; nothing."""


class Flat(NamedTuple):
    """A `JointPlan` as arrays of all D devices, W waves, C copies, X waits, G gates, Q queues."""

    wave_at: np.ndarray
    """int64 [D + 1]: first wave of each device."""
    pre: np.ndarray
    cpu: np.ndarray
    work: np.ndarray
    copy_lo: np.ndarray
    """int64 [W]: first copy of a wave."""
    copy_hi: np.ndarray
    wait_lo: np.ndarray
    wait_hi: np.ndarray
    waits: np.ndarray
    kind: np.ndarray
    ns: np.ndarray
    after: np.ndarray
    also: np.ndarray
    gate_lo: np.ndarray
    """int64 [W + 1]: first gate of a wave."""
    gate_wave: np.ndarray
    gate_what: np.ndarray
    gate_ns: np.ndarray
    queue_at: np.ndarray
    """int64 [Q + 1]: first entry of a queue in ``line``."""
    line: np.ndarray
    """int64 [C]: copies by queue, in order."""
    queue_lo: np.ndarray
    """int64 [engines + 1]: first queue of an engine; demand before prefetch, then by device."""
    urgent: np.ndarray
    """bool [Q]"""


def run(plan: JointPlan) -> JointTimeline:
    """Times of ``plan``; equal to the SimPy clock's to the nanosecond."""
    f = flat(plan)
    opened, ready, ended, start, done = _clock(f)
    wave_at = f.wave_at.tolist()
    copy_at = _at([len(p.copy_ns) for p in plan.plans]).tolist()
    none = np.zeros(0, np.int64)
    devices = [
        Timeline(none, opened[a:b], ready[a:b], start[c:d], done[c:d])
        for (a, b), (c, d) in zip(pairwise(wave_at), pairwise(copy_at), strict=True)
    ]
    ends = [
        max(
            int((opened if g.what == OPENED else ended)[wave_at[g.device] + g.wave]) + g.ns
            for g in gates
        )
        for gates in plan.step_gates
    ]
    return JointTimeline(np.array(ends, np.int64), devices)


def flat(plan: JointPlan) -> Flat:
    """The arrays of a plan."""
    plans = plan.plans
    wave_at = _at([len(p.pre_ns) for p in plans])
    copy_at = _at([len(p.copy_ns) for p in plans])
    wait_at = _at([len(p.waits) for p in plans])
    copy_hi = _joined([p.wave_copy_hi + at for p, at in zip(plans, copy_at, strict=False)])
    wait_hi = _joined([p.wave_wait_hi + at for p, at in zip(plans, wait_at, strict=False)])
    counts = np.zeros(int(wave_at[-1]), np.int64)
    gates = []
    for d, by_wave in enumerate(plan.gates):
        for wave in sorted(by_wave):
            counts[wave_at[d] + wave] = len(by_wave[wave])
            gates += [(wave_at[g.device] + g.wave, g.what, g.ns) for g in by_wave[wave]]
    table = np.array(gates, np.int64).reshape(len(gates), 3)
    kind = _joined([p.copy_kind for p in plans], np.int8)
    device = np.repeat(np.arange(len(plans)), np.diff(copy_at))
    engine = _joined(plan.engine)
    # One queue an engine, urgency and device; a stable sort keeps the order within each.
    key = (engine * 2 + (kind == PREFETCH)) * len(plans) + device
    line = np.argsort(key, kind="stable")
    keys, first = np.unique(key[line], return_index=True)
    pre, cpu, work = (_joined([getattr(p, x) for p in plans])
                      for x in ("pre_ns", "cpu_ns", "compute_ns"))  # fmt: skip
    return Flat(
        wave_at, pre, cpu, work,
        _lows(copy_hi, plans, copy_at), copy_hi, _lows(wait_hi, plans, wait_at), wait_hi,
        _joined([p.waits + at for p, at in zip(plans, copy_at, strict=False)]),
        kind, _joined([p.copy_ns for p in plans]),
        _moved([p.copy_after for p in plans], copy_at), _moved(plan.also, copy_at),
        _at(counts.tolist()), table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy(),
        np.append(first, len(line)).astype(np.int64), line.astype(np.int64),
        np.searchsorted(keys // (2 * len(plans)), np.arange(plan.n_engines + 1)).astype(np.int64),
        keys // len(plans) % 2 == 0,
    )  # fmt: skip


def _at(lengths: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def _joined(parts: list[np.ndarray], dtype: type = np.int64) -> np.ndarray:
    return np.concatenate(parts).astype(dtype)


def _lows(hi: np.ndarray, plans: list[Plan], at: np.ndarray) -> np.ndarray:
    """Where each wave begins whose end is ``hi``: the end before it, on the same device."""
    lo = np.concatenate(([0], hi))[:-1].astype(np.int64)
    first = 0
    for p, begin in zip(plans, at, strict=False):
        if len(p.pre_ns):
            lo[first] = begin
        first += len(p.pre_ns)
    return lo


def _moved(parts: list[np.ndarray], at: np.ndarray) -> np.ndarray:
    return _joined([np.where(x >= 0, x + a, -1) for x, a in zip(parts, at, strict=False)])


@inner
def _arrived(f, w, done):
    """Whether everything that a wave waits for is there."""
    for c in range(f.copy_lo[w], f.copy_hi[w]):
        if f.kind[c] == DEMAND and done[c] == UNKNOWN:
            return False
    for x in range(f.wait_lo[w], f.wait_hi[w]):  # noqa: SIM110 (Numba compiles no generator here)
        if done[f.waits[x]] == UNKNOWN:
            return False
    return True


@inner
def _begins(f, w, now, opened, ended):
    """When a wave's dense work may begin, UNKNOWN while something it waits for is still to come."""
    begin = now
    for g in range(f.gate_lo[w], f.gate_lo[w + 1]):
        other = f.gate_wave[g]
        at = opened[other] if f.gate_what[g] == OPENED else ended[other]
        if at == UNKNOWN:
            return UNKNOWN
        begin = max(begin, at + f.gate_ns[g])
    return begin


@inner
def _advance(f, wave, last, stage, until, now, opened, ready, ended, queued, done):
    """One device as far as it can go now; returns its wave, what it does and until when."""
    while stage != OVER:
        if stage == GATE:
            begin = _begins(f, wave, now, opened, ended)
            if begin == UNKNOWN:
                return wave, stage, FOREVER
            stage, until = DENSE, begin + f.pre[wave]
        elif stage == WAIT:
            if not _arrived(f, wave, done):
                return wave, stage, FOREVER
            ready[wave] = now
            stage, until = WORK, now + f.work[wave]
        if until > now:
            return wave, stage, until
        if stage == DENSE:
            opened[wave] = now
            for c in range(f.copy_lo[wave], f.copy_hi[wave]):
                queued[c] = now
            stage, until = AWAY, now + f.cpu[wave]
        elif stage == AWAY:
            stage = WAIT
        elif stage == WORK:
            ended[wave] = now
            wave += 1
            stage = OVER if wave == last else GATE
    return wave, stage, FOREVER


@inner
def _choose(f, engine, head, queued, done):
    """The queue whose head an idle engine takes, -1: none may move."""
    best = -1
    for q in range(f.queue_lo[engine], f.queue_lo[engine + 1]):
        if best >= 0 and f.urgent[best] and not f.urgent[q]:
            break
        if head[q] == f.queue_at[q + 1]:
            continue
        c = f.line[head[q]]
        if queued[c] == UNKNOWN:
            continue
        if f.after[c] >= 0 and done[f.after[c]] == UNKNOWN:
            continue
        if f.also[c] >= 0 and done[f.also[c]] == UNKNOWN:
            continue
        if best < 0 or queued[c] < queued[f.line[head[best]]]:
            best = q
    return best


@compiled(nogil=True)
def _clock(f):
    devices, waves, copies = len(f.wave_at) - 1, len(f.pre), len(f.ns)
    engines = len(f.queue_lo) - 1
    opened = np.full(waves, UNKNOWN)
    ready = np.full(waves, UNKNOWN)
    ended = np.full(waves, UNKNOWN)
    queued = np.full(copies, UNKNOWN)
    start = np.full(copies, UNKNOWN)
    done = np.full(copies, UNKNOWN)
    wave = f.wave_at[:-1].copy()
    stage = np.full(devices, GATE)
    until = np.full(devices, FOREVER)
    head = f.queue_at[:-1].copy()
    moving = np.full(engines, UNKNOWN)
    free_at = np.full(engines, FOREVER)
    for d in range(devices):
        if wave[d] == f.wave_at[d + 1]:
            stage[d] = OVER
    now = np.int64(0)
    while now < FOREVER:
        for e in range(engines):
            if free_at[e] == now:
                done[moving[e]] = now
                moving[e], free_at[e] = UNKNOWN, FOREVER
        again = True
        while again:
            # What one device does now may be what another waits for.
            again = False
            for d in range(devices):
                before, was = wave[d], stage[d]
                wave[d], stage[d], until[d] = _advance(
                    f, wave[d], f.wave_at[d + 1], stage[d], until[d], now, opened, ready, ended,
                    queued, done,
                )  # fmt: skip
                if wave[d] != before or stage[d] != was:
                    again = devices > 1
        for e in range(engines):
            if moving[e] != UNKNOWN:
                continue
            q = _choose(f, e, head, queued, done)
            if q >= 0:
                c = f.line[head[q]]
                head[q] += 1
                start[c] = now
                moving[e], free_at[e] = c, now + f.ns[c]
        later = np.int64(FOREVER)
        for d in range(devices):
            later = min(later, until[d])
        for e in range(engines):
            later = min(later, free_at[e])
        now = later
    return opened, ready, ended, start, done
