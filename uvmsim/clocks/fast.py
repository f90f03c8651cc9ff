"""The compiled clock: the same timeline as `uvmsim.clocks.des`, as recurrences.

A start is the later of "ready" and "engine free". The only choice is the H2D engine's: when it falls
idle, the head of the demand queue goes first if it is ready by then, else the head of the prefetch
queue. Copies get their times in the order the engine takes them, at latest when somebody waits for
them; prefetches that nobody waits for yet stay queued, since a later demand copy may overtake them.

Where prefetches are cut in pieces (`Plan.piece_ns`), the engine chooses anew after each piece, and
those that a wave waits for, or that are in the way of its copies, are in a queue between the two.
"""

from __future__ import annotations

import numpy as np

from traces.jit import compiled
from uvmsim.clocks import fast_disk
from uvmsim.core.jit import kernel_part as inner
from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK, Plan
from uvmsim.runs.timeline import Timeline

UNKNOWN = np.int64(-1)
AWAITED = 3
"""Line of a prefetch that somebody waits for; the others are their kinds."""
FOREVER = np.iinfo(np.int64).max

H2D, D2H, NOW, ISSUED, DEMAND_HEAD, PREFETCH_HEAD, BACK_HEAD, NEXT_WANTED, WANTED = range(9)
"""Where a clock stands: when the engines are free, when the GPU is; copies issued, heads of the queues,
and what was asked for of those that are waited for."""
PLACES = 9


def run(plan: Plan) -> Timeline:
    """Times of ``plan``; equal to the SimPy engine's to the nanosecond."""
    if plan.reads is not None:
        return fast_disk.run(plan)
    times = _clock(
        plan.pre_ns, plan.cpu_ns, plan.compute_ns, plan.wave_copy_hi, plan.wave_wait_hi,
        plan.copy_kind, plan.copy_after, plan.copy_ns, plan.waits, plan.step_wave_hi,
        np.int64(plan.piece_ns),
    )  # fmt: skip
    return Timeline(*times)


@inner
def _ready(c, queued, after, done):
    """When copy ``c`` may start at the earliest, UNKNOWN while what it follows has no time yet."""
    a = after[c]
    if a < 0:
        return queued[c]
    if done[a] == UNKNOWN:
        return UNKNOWN
    return max(queued[c], done[a])


@inner
def _skip(order_kind, kind, at, end):
    """The first copy of ``kind`` at or after ``at``."""
    while at < end and order_kind[at] != kind:
        at += 1
    return at


@inner
def _want(c, kind, line, after, done, wanted, n):
    """Prefetches that must be done before ``c`` may start, and ``c`` if it is one, join the first ``n``
    in ``wanted``, those that are followed first; returns how many there are then."""
    first = n
    while c >= 0 and done[c] == UNKNOWN:
        if kind[c] == PREFETCH and line[c] != AWAITED:
            line[c] = AWAITED
            wanted[n] = c
            n += 1
        c = after[c]
    last = n - 1
    while first < last:
        wanted[first], wanted[last] = wanted[last], wanted[first]
        first, last = first + 1, last - 1
    return n


@compiled(nogil=True)
def _clock(pre, cpu, compute, copy_hi, wait_hi, kind, after, ns, waits, step_wave_hi, piece):
    n_copies = len(kind)
    line = kind
    left = ns
    wanted = np.empty(0, np.int64)
    if piece > 0:
        line = kind.copy()
        left = ns.copy()
        wanted = np.empty(n_copies, np.int64)
    queued = np.empty(n_copies, np.int64)
    start = np.full(n_copies, UNKNOWN)
    done = np.full(n_copies, UNKNOWN)
    opened = np.empty(len(pre), np.int64)
    arrived = np.empty(len(pre), np.int64)
    ended = np.empty(len(pre), np.int64)
    at = np.zeros(PLACES, np.int64)
    advance(
        at, len(pre), n_copies, True, pre, cpu, compute, copy_hi, wait_hi, kind, line, after, ns,
        left, waits, queued, start, done, wanted, opened, arrived, ended, piece,
    )  # fmt: skip
    step_end = np.empty(len(step_wave_hi), np.int64)
    for step in range(len(step_wave_hi)):
        step_end[step] = ended[step_wave_hi[step] - 1]
    return step_end, opened, arrived, start, done


@inner
def advance(
    at, n_waves, n_copies, drain, pre, cpu, compute, copy_hi, wait_hi, kind, line, after, ns, left,
    waits, queued, start, done, wanted, opened, arrived, ended, piece,
):  # fmt: skip
    """Give the next ``n_waves`` waves and their copies times; ``drain``: then all other copies too.

    ``at`` int64 [9] is where the clock stands (`H2D` .. `WANTED`), zeros at first: the waves are
    the first of ``pre`` .. ``wait_hi``, and copies those of all arrays that begin with ``kind``, of
    which ``n_copies`` are known; ``waits`` begin with the waves."""
    h2d, d2h, now, issued = at[H2D], at[D2H], at[NOW], at[ISSUED]
    next_wanted, n_wanted = at[NEXT_WANTED], at[WANTED]
    # A queue is all copies of its kind in order: its head is a number, its end the copies queued.
    demand = _skip(kind, DEMAND, at[DEMAND_HEAD], n_copies)
    prefetch = _skip(line, PREFETCH, at[PREFETCH_HEAD], n_copies)
    back = _skip(kind, WRITEBACK, at[BACK_HEAD], n_copies)
    waited = np.int64(0)
    for w in range(n_waves + 1):
        last = w == n_waves
        if last and not drain:
            break
        before = issued
        opening = FOREVER if last else now + pre[w]
        # Phase 0: what the engines do before the wave opens. Phase 1: until all it waits for is
        # there.
        for phase in range(2):
            until = opening if phase == 0 else FOREVER
            if phase == 1:
                if last:
                    break
                opened[w] = opening
                for c in range(issued, copy_hi[w]):
                    queued[c] = opening
                if piece > 0:
                    for c in range(issued, copy_hi[w]):
                        if kind[c] == DEMAND:
                            n_wanted = _want(c, kind, line, after, done, wanted, n_wanted)
                    for x in range(waited, wait_hi[w]):
                        n_wanted = _want(waits[x], kind, line, after, done, wanted, n_wanted)
                    prefetch = _skip(line, PREFETCH, prefetch, n_copies)
                issued = copy_hi[w]
            while True:
                while back < issued:
                    r = _ready(back, queued, after, done)
                    if r == UNKNOWN:
                        break
                    start[back] = max(r, d2h)
                    d2h = start[back] + ns[back]
                    done[back] = d2h
                    back = _skip(kind, WRITEBACK, back + 1, n_copies)
                if phase == 1 and demand >= issued:
                    settled = True
                    for x in range(waited, wait_hi[w]):
                        if done[waits[x]] == UNKNOWN:
                            settled = False
                    if settled:
                        break
                at_demand = FOREVER
                if demand < issued:
                    r = _ready(demand, queued, after, done)
                    if r != UNKNOWN:
                        at_demand = max(r, h2d)
                at_wanted = FOREVER
                if next_wanted < n_wanted:
                    r = _ready(wanted[next_wanted], queued, after, done)
                    if r != UNKNOWN:
                        at_wanted = max(r, h2d, opening)
                at_prefetch = FOREVER
                if prefetch < issued:
                    r = _ready(prefetch, queued, after, done)
                    if r != UNKNOWN:
                        at_prefetch = max(r, h2d)
                        if piece > 0 and phase == 1:
                            # What stood before it may have changed lines only now.
                            at_prefetch = max(at_prefetch, opening)
                if at_demand <= min(at_wanted, at_prefetch):
                    if at_demand == FOREVER:
                        break
                    start[demand] = at_demand
                    h2d = at_demand + ns[demand]
                    done[demand] = h2d
                    demand = _skip(kind, DEMAND, demand + 1, n_copies)
                elif at_wanted <= at_prefetch:
                    # Nothing overtakes it: the wave after this one opens when it is done.
                    c = wanted[next_wanted]
                    if start[c] == UNKNOWN:
                        start[c] = at_wanted
                    h2d = at_wanted + left[c]
                    done[c] = h2d
                    next_wanted += 1
                else:
                    # A prefetch that would start with or after the opening may be overtaken.
                    if at_prefetch >= until:
                        break
                    if start[prefetch] == UNKNOWN:
                        start[prefetch] = at_prefetch
                    if 0 < piece < left[prefetch]:
                        left[prefetch] -= piece
                        h2d = at_prefetch + piece
                        continue
                    h2d = at_prefetch + left[prefetch]
                    done[prefetch] = h2d
                    prefetch = _skip(line, PREFETCH, prefetch + 1, n_copies)
        if last:
            break
        ready = opening + cpu[w]
        for c in range(before, copy_hi[w]):
            if kind[c] == DEMAND:
                ready = max(ready, done[c])
        for x in range(waited, wait_hi[w]):
            ready = max(ready, done[waits[x]])
        waited = wait_hi[w]
        arrived[w] = ready
        now = ready + compute[w]
        ended[w] = now
    at[H2D], at[D2H], at[NOW], at[ISSUED] = h2d, d2h, now, issued
    at[NEXT_WANTED], at[WANTED] = next_wanted, n_wanted
    at[DEMAND_HEAD], at[PREFETCH_HEAD], at[BACK_HEAD] = demand, prefetch, back
