"""A disk below host memory once more, slow and obvious; shares nothing with the code under test.

`lru_reads` and `pages` decide, `tick` times, nanosecond by nanosecond.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from uvmsim.runs.plan import DEMAND, PREFETCH, Plan
from uvmsim.runs.timeline import Timeline


def lru_reads(copies: list[tuple[int, int, bool]], slots: int, held: int):
    """Host memory under LRU that holds experts 0 .. held - 1. ``copies``: (number, expert, prefetch).

    Returns by copy the read that brought its expert (-1: none), and the reads: (copy that asks, slot,
    last demand copy out of that slot, last prefetch)."""
    order = list(range(held))  # least recently used first
    slot_of = {e: e for e in range(held)}
    brought: dict[int, int] = {}
    out_of: dict[int, list[tuple[int, bool]]] = {}
    of_copy, reads = [], []
    for number, e, prefetch in copies:
        if e in order:
            order.remove(e)
        else:
            full = len(order) == slots
            slot = slot_of.pop(order.pop(0)) if full else len(order)
            before = out_of.pop(slot, [])
            last = [max((n for n, p in before if p == kind), default=-1) for kind in (False, True)]
            brought[e] = len(reads)
            reads.append((number, slot, *last))
            slot_of[e] = slot
        order.append(e)
        of_copy.append(brought.get(e, -1))
        out_of.setdefault(slot_of[e], []).append((number, prefetch))
    return of_copy, reads


def pages(ids: list[int], size: list[int], capacity: int) -> list[int]:
    """Pages that are read for each access: an LRU list of single pages."""
    cache: OrderedDict[tuple[int, int], None] = OrderedDict()
    missing = []
    for e in ids:
        read = 0
        for page in range(size[e]):
            if (e, page) in cache:
                cache.move_to_end((e, page))
                continue
            read += 1
            if len(cache) == capacity:
                cache.popitem(last=False)
            cache[e, page] = None
        missing.append(read)
    return missing


def tick(plan: Plan) -> Timeline:
    """The specification. At every nanosecond: copies and reads that are over arrive; the GPU goes as
    far as it can; the disk takes reads while it has places, the demand queue's head if that may start,
    else the prefetch queue's; then the link, if free, takes from the demand queue, else from the
    prefetch queue, the first copy whose bytes are there, if its slot is free.

    A read may start when the copies out of its slot are done. Its latency begins then; its bytes come
    after it, and after those of all reads that started before."""
    r = plan.reads
    n, reads = len(plan.copy_ns), len(r.ns)
    start, done = [None] * n, [None] * n
    read_start, read_done = [None] * reads, [None] * reads
    flying: list[list[int]] = []  # read, latency left, ns left; in order of start
    opened, ready = [None] * len(plan.pre_ns), [None] * len(plan.pre_ns)
    step_end = [None] * len(plan.step_wave_hi)
    links: dict[int, list[int]] = {DEMAND: [], PREFETCH: []}
    asked: dict[int, list[int]] = {DEMAND: [], PREFETCH: []}
    moving, free_at = None, 0
    copy_lo, wait_lo = [0, *plan.wave_copy_hi], [0, *plan.wave_wait_hi]
    wave, stage, until = 0, "dense", int(plan.pre_ns[0])
    now = 0

    def over(copy) -> bool:
        return copy < 0 or done[copy] is not None

    while wave < len(plan.pre_ns) or any(d is None for d in done):
        if moving is not None and now == free_at:
            done[moving] = now
            moving = None
        while flying and flying[0][1] <= 0 and flying[0][2] == 0:
            read_done[flying.pop(0)[0]] = now
        while wave < len(plan.pre_ns):
            mine = range(copy_lo[wave], copy_lo[wave + 1])
            if stage == "dense" and now >= until:
                opened[wave] = now
                for copy in mine:
                    links[plan.copy_kind[copy]].append(copy)
                    for read in range(reads):
                        if r.copy[read] == copy:
                            asked[plan.copy_kind[copy]].append(read)
                stage, until = "cpu", now + int(plan.cpu_ns[wave])
            elif stage == "cpu" and now >= until:
                stage = "wait"
            elif stage == "wait":
                needed = [c for c in mine if plan.copy_kind[c] == DEMAND]
                needed += [int(c) for c in plan.waits[wait_lo[wave] : wait_lo[wave + 1]]]
                if not all(over(c) for c in needed):
                    break
                ready[wave] = now
                stage, until = "compute", now + int(plan.compute_ns[wave])
            elif stage == "compute" and now >= until:
                for s, last in enumerate(plan.step_wave_hi):
                    if last == wave + 1:
                        step_end[s] = now
                wave += 1
                if wave < len(plan.pre_ns):
                    stage, until = "dense", now + int(plan.pre_ns[wave])
            else:
                break
        took = True
        while took and len(flying) < r.depth:
            took = False
            for queue in asked.values():
                if queue and all(over(c) for c in r.after[queue[0]]):
                    read = queue.pop(0)
                    read_start[read] = now
                    flying.append([read, r.latency_ns, int(r.ns[read])])
                    took = True
                    break
        if moving is None:
            for queue in links.values():
                there = [
                    c for c in queue if r.of_copy[c] < 0 or read_done[r.of_copy[c]] is not None
                ]
                if there and over(plan.copy_after[there[0]]):
                    moving = there[0]
                    queue.remove(moving)
                    start[moving], free_at = now, now + int(plan.copy_ns[moving])
                    break
        now += 1
        # The first of those in flight whose latency is over moves; the order is that of their start.
        if flying and flying[0][1] <= 0:
            flying[0][2] -= 1
        for flight in flying:
            flight[1] -= 1
    times = (step_end, opened, ready, start, done, read_start, read_done)
    return Timeline(*(np.array(x, np.int64) for x in times))
