"""The compiled clock of plans with a disk: `uvmsim.clocks.des_disk`, from event to event.

At each instant: what is over arrives; the GPU goes as far as it can; the disk takes reads while it has
places; then the link, if it is free, takes a copy whose bytes are in host memory.
"""

from __future__ import annotations

import numpy as np

from traces.jit import compiled
from uvmsim.core.jit import inner
from uvmsim.runs.plan import DEMAND, Plan
from uvmsim.runs.timeline import Timeline

UNKNOWN = np.int64(-1)
FOREVER = np.int64(np.iinfo(np.int64).max)
DENSE, CPU, WAIT, COMPUTE, OVER = range(5)


def run(plan: Plan) -> Timeline:
    """Times of a plan with `Plan.reads`."""
    r = plan.reads
    assert r is not None
    times = _clock(
        plan.pre_ns, plan.cpu_ns, plan.compute_ns, plan.wave_copy_hi, plan.wave_wait_hi,
        plan.copy_kind, plan.copy_after, plan.copy_ns, plan.waits, plan.step_wave_hi,
        r.of_copy, r.copy, r.ns, r.after, np.int64(r.latency_ns), np.int64(r.depth),
    )  # fmt: skip
    return Timeline(*times)


@inner
def _over(n, done, now):
    """Whether number ``n`` (-1: nothing) is done by now."""
    return n < 0 or (done[n] != UNKNOWN and done[n] <= now)


@inner
def _next_read(line, kind, copy, at, end):
    """The first read of a line at or after ``at``."""
    while at < end and kind[copy[at]] != line:
        at += 1
    return at


@inner
def _next_copy(line, kind, start, after, done, of_copy, read_done, at, end, now):
    """The first copy of a line whose bytes are in host memory, if it may start now; -1 otherwise."""
    for c in range(at, end):
        if kind[c] == line and start[c] == UNKNOWN and _over(of_copy[c], read_done, now):
            return c if _over(after[c], done, now) else -1
    return -1


@inner
def _first_left(line, kind, start, at, end):
    while at < end and (kind[at] != line or start[at] != UNKNOWN):
        at += 1
    return at


@compiled(nogil=True)
def _clock(
    pre, cpu, compute, copy_hi, wait_hi, kind, after, ns, waits, step_wave_hi, of_copy, read_copy,
    read_ns, read_after, latency, depth,
):  # fmt: skip
    n_copies, n_reads, n_waves = len(kind), len(read_copy), len(pre)
    start = np.full(n_copies, UNKNOWN)
    done = np.full(n_copies, UNKNOWN)
    read_start = np.full(n_reads, UNKNOWN)
    read_done = np.full(n_reads, UNKNOWN)
    opened = np.empty(n_waves, np.int64)
    arrived = np.empty(n_waves, np.int64)
    step_end = np.empty(len(step_wave_hi), np.int64)
    order = np.empty(n_reads, np.int64)  # of issue, which is that of arrival: one channel
    issued = arrived_reads = np.int64(0)
    channel = np.int64(0)
    heads = np.zeros(2, np.int64)
    reads = np.zeros(2, np.int64)
    queued = np.int64(0)
    queued_reads = np.int64(0)
    link_until = np.int64(0)
    moving = False
    now = np.int64(0)
    wave = 0
    step = 0
    stage = DENSE if n_waves else OVER
    until = pre[0] if n_waves else np.int64(0)
    moved = 0
    following = np.int64(0)
    while following != FOREVER:
        now = following
        if moving and link_until <= now:
            moving = False
        while arrived_reads < issued and read_done[order[arrived_reads]] <= now:
            arrived_reads += 1
        while stage != OVER:
            lo = np.int64(0) if wave == 0 else copy_hi[wave - 1]
            if stage == DENSE and until <= now:
                opened[wave] = now
                queued = copy_hi[wave]
                while queued_reads < n_reads and read_copy[queued_reads] < queued:
                    queued_reads += 1
                stage, until = CPU, now + cpu[wave]
            elif stage == CPU and until <= now:
                stage = WAIT
            elif stage == WAIT:
                there = True
                for c in range(lo, copy_hi[wave]):
                    if kind[c] == DEMAND and not _over(c, done, now):
                        there = False
                        break
                for x in range(np.int64(0) if wave == 0 else wait_hi[wave - 1], wait_hi[wave]):
                    if not there:
                        break
                    there = _over(waits[x], done, now)
                if not there:
                    break
                arrived[wave] = now
                stage, until = COMPUTE, now + compute[wave]
            elif stage == COMPUTE and until <= now:
                while step < len(step_wave_hi) and step_wave_hi[step] == wave + 1:
                    step_end[step] = now
                    step += 1
                wave += 1
                if wave == n_waves:
                    stage = OVER
                else:
                    stage, until = DENSE, now + pre[wave]
            else:
                break
        while issued - arrived_reads < depth:
            r = UNKNOWN
            for line in range(2):
                reads[line] = _next_read(line, kind, read_copy, reads[line], queued_reads)
                if reads[line] < queued_reads:
                    first = reads[line]
                    if _over(read_after[first, 0], done, now) and _over(
                        read_after[first, 1], done, now
                    ):
                        r = first
                        reads[line] += 1
                        break
            if r == UNKNOWN:
                break
            read_start[r] = now
            channel = max(channel, now + latency) + read_ns[r]
            read_done[r] = channel
            order[issued] = r
            issued += 1
        if not moving:
            for line in range(2):
                heads[line] = _first_left(line, kind, start, heads[line], queued)
                c = _next_copy(
                    line, kind, start, after, done, of_copy, read_done, heads[line], queued, now
                )
                if c >= 0:
                    start[c] = now
                    link_until = now + ns[c]
                    done[c] = link_until
                    moving = True
                    moved += 1
                    break
        following = FOREVER
        if moving:
            following = link_until
        if arrived_reads < issued:
            following = min(following, read_done[order[arrived_reads]])
        if stage != OVER and stage != WAIT:
            following = min(following, until)
    if moved < n_copies or stage != OVER:
        raise AssertionError("the plan came to a stop")
    return step_end, opened, arrived, start, done, read_start, read_done
