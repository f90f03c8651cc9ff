"""Fault servicing, step by step as the driver does it (open-gpu-kernel-modules 575.57.08:
uvm_gpu_replayable_faults.c, uvm_va_block.c, uvm_pmm_gpu.c).

`run_kernels` is a template: `uvmsim.core.bind` puts a policy's hooks in the place of those of
`uvmsim.paging.hooks` and compiles this file, `faults`, `regions` and `frames` with them.

A wave reads its touches ``Kernels.looks`` times over, each time until none of its pages is missing.
Meanwhile, batch by batch: the SMs' faults are fetched, at most ``Costs.batch`` entries, sorted by
address and coalesced; block by block the region to bring in is computed, a frame allocated (evicting
where none is free) and filled; the buffer is flushed (what was not fetched faults again) and the faults
are replayed. A chunk is safe only while its own block is served: the next block of the same batch may
take it (uvm_pmm_gpu_unpin_allocated), and the warps fault again.

The handler's time goes into batches and into the buffer's entries, duplicates included. The copy into a
frame waits for the copy out of it, whose tracker it acquires (block_copy_begin_push). See
docs/paging.md for what that leaves out.
"""

from __future__ import annotations

import numpy as np

from uvmsim.paging.bits import fill, lowest
from uvmsim.paging.faults import fetch, missing_from, next_missing
from uvmsim.paging.frames import Moved, bring, make_resident, release
from uvmsim.paging.hooks import MIGRATES, RECORDS, WORK_OF_ORDER, after_batch, seen_by_hooks
from uvmsim.paging.kernels import Kernels
from uvmsim.paging.regions import prefetch_mask
from uvmsim.paging.tables import (
    BATCHES,
    D2H,
    EVICTED,
    H2D,
    HANDLER,
    MIGRATED,
    REMOTE,
    REMOTE_FLAG,
    ROW_ASYNC,
    ROW_BATCH,
    ROW_COPY,
    ROW_END,
    ROW_KERNEL,
    ROW_REPLAY,
    ROW_SERVICE,
    ROW_WAIT,
    ROW_WORK,
    STREAM,
    TO_HOST,
    Costs,
    States,
    Tables,
    Time,
)
from uvmsim.paging.touches import start_of
from uvmsim.policies.pages.base import ASKED, BATCH, CURRENT, NOW_NS, PAGES


def row(time: Time, kind, own_ns, ref):
    """Write a row of the program, or only count it; its number. The clock is already past it."""
    program = time.program
    at = program.n[0]
    if RECORDS:
        if at < len(program.kind):
            program.kind[at], program.ref[at] = kind, ref
            program.own_ns[at], program.clock_ns[at] = own_ns, time.clock[HANDLER]
        program.n[0] = at + 1
    return at


def service_ns(costs: Costs, moved: Moved):
    """The handler's time for a block, beside its entries in the buffer."""
    ns = costs.service_ns + moved.pages * costs.push_ns
    if moved.fresh:
        ns += costs.first_touch_ns
    return ns + costs.evict_ns if moved.victim >= 0 else ns


def transfer(time: Time, out_ns, in_ns):
    """Queue the copies of a service now: the victim's way out, then the pages' way in. Returns when
    both are done. Without ``Costs.duplex`` one engine has them all."""
    clock, duplex = time.clock, time.costs.duplex
    at = done = clock[HANDLER]
    if out_ns > 0:
        start = max(clock[D2H], at)
        clock[D2H] = done = start + out_ns
        if not duplex:
            clock[H2D] = max(clock[H2D], clock[D2H])
    if in_ns > 0:
        clock[H2D] = done = max(clock[H2D], done) + in_ns
        if not duplex:
            clock[D2H] = clock[H2D]
    return done


def carry(time: Time, kind, own_ns, b, page, moved: Moved, beside):
    """What a block's service takes: ``own_ns`` of the handler, then its copies. ``beside``: they run
    beside another block's. Returns when they are done, and the row's number."""
    costs, program = time.costs, time.program
    back = moved.back
    out_ns = costs.copy_ns + back * costs.page_out_ps // 1000 if back > 0 else np.int64(0)
    in_ns = moved.operations * costs.copy_ns + moved.pages * costs.page_in_ps // 1000
    if beside and costs.duplex and back > 0:
        in_ns = in_ns * 1000 // costs.duplex_permille
        out_ns = out_ns * 1000 // costs.duplex_permille
    time.clock[HANDLER] += own_ns
    done = transfer(time, out_ns, in_ns)
    at = row(time, kind, own_ns, -1)
    if RECORDS and at < len(program.kind):
        program.out_ns[at], program.in_ns[at] = out_ns, in_ns
        program.block[at], program.page[at] = b, page
        program.victim[at], program.back[at] = moved.victim, back
        program.chunk[at] = moved.label
    return done, at


def service(t: Tables, s: States, n, counters):
    """Serve the ``n`` blocks of a batch in order of address; when its last copy is done."""
    d, p, x = t.driver, t.pages, t.scratch
    last = t.time.clock[HANDLER]
    for i in range(n):
        slot = x.order[i]
        b, faulted = x.block[slot], x.faulted[slot]
        prefetch_mask(s.prefetch, d, p, x, b, faulted, t.time.costs.threshold)
        w = 0
        while faulted[w] == 0:
            w += 1
        first = np.int64(64 * w + lowest(faulted[w]))
        for w in range(PAGES // 64):
            x.mask[w] |= faulted[w]
        moved = make_resident(s.order, d, p, b, x.mask, counters)
        cpu = service_ns(t.time.costs, moved)
        done, _ = carry(t.time, ROW_SERVICE, cpu, b, first, moved, i > 0)
        last = max(last, done)
    return last


def work_queued(t: Tables, s: States):
    """What the policy left for after the batch, which may ask for blocks, and may move no chunk."""
    d = t.driver
    then = d.n[NOW_NS]
    d.n[NOW_NS], d.n[CURRENT] = t.time.clock[HANDLER], len(d.block_of)
    after_batch(s.order if WORK_OF_ORDER else s.prefetch, seen_by_hooks(d))
    d.n[NOW_NS] = then


def migrate_ahead(t: Tables, s: States, counters):
    """Bring in the blocks the policy asked for, of the process that faulted, without anybody
    waiting (bpf_wq)."""
    d, p, x = t.driver, t.pages, t.scratch
    tenant = d.tenant_of[x.block[0]]
    for i in range(d.n[ASKED]):
        b = d.wanted[i]
        if d.tenant_of[b] != tenant:
            continue
        if d.n_resident[b] == d.n_pages[b] or p.populated[b] == 0 or p.advice[b] & REMOTE_FLAG:
            continue
        for w in range(PAGES // 64):
            x.mask[w] = 0
        fill(x.mask, 0, np.int64(d.n_pages[b]))
        moved = bring(s.order, d, p, b, x.mask, counters)
        counters[MIGRATED] += 1
        p.arrival[b], p.mover[b] = carry(t.time, ROW_ASYNC, 0, b, 0, moved, False)
    d.n[ASKED] = 0


def await_migrations(t: Tables, first, last):
    """A touch of a block that is still on its way waits for it."""
    p = t.pages
    for b in range(first // PAGES, (last - 1) // PAGES + 1):
        if p.mover[b] >= 0:
            if p.arrival[b] > t.time.clock[HANDLER]:
                t.time.clock[HANDLER] = p.arrival[b]
                row(t.time, ROW_WAIT, 0, p.mover[b])
            p.mover[b] = -1


def run_wave(t: Tables, s: States, k: Kernels, wave, counters):
    """A wave's touches side by side, ``Kernels.looks`` times; whether any page was missing."""
    d, p, x = t.driver, t.pages, t.scratch
    lo, hi = start_of(k.touch_hi, wave), k.touch_hi[wave]
    faulted = False
    for look in range(k.looks[wave]):
        waiting = 0
        for i in range(lo, hi):
            if MIGRATES and k.last[i] > k.first[i]:
                await_migrations(t, k.first[i], k.last[i])
            if look == 0:
                at = missing_from(d, p, k.first[i], k.last[i], counters)
            else:
                at = next_missing(d, p, k.first[i], k.last[i])
            if at < k.last[i]:
                x.touch[waiting], x.at[waiting] = i, at
                waiting += 1
        if waiting == 0:
            break
        faulted = True
        evicted = counters[EVICTED]
        settle(t, s, k, wave, waiting, counters)
        if counters[EVICTED] == evicted:
            break  # nothing was lost, so no later look misses anything
    if MIGRATES and faulted:  # blocks that were asked for meanwhile and are this wave's own
        for i in range(lo, hi):
            if k.last[i] > k.first[i]:
                await_migrations(t, k.first[i], k.last[i])
    return faulted


def settle(t: Tables, s: States, k: Kernels, wave, waiting, counters):
    """Batches until the ``waiting`` touches in `Scratch` had all their pages, each at some replay."""
    d, x = t.driver, t.scratch
    costs, clock, limit = t.time.costs, t.time.clock, k.limit[wave]
    stuck = False
    while waiting > 0:
        d.n[BATCH] += 1
        active = min(waiting, limit) if limit > 0 else waiting
        n, entries = fetch(t, k, wave, active, stuck, counters)
        counters[BATCHES] += 1
        cpu = costs.batch_ns + entries * costs.entry_ns
        clock[HANDLER] += cpu
        d.n[NOW_NS] = clock[HANDLER]
        row(t.time, ROW_BATCH, cpu, -1)
        end = service(t, s, n, counters)
        clock[HANDLER] = max(clock[HANDLER], end)
        row(t.time, ROW_REPLAY, 0, -1)
        waiting = advance(t, k, waiting)
        # Blocks of a batch that take each other's frames help nobody: then one warp at a time gets on.
        stuck = x.moved[0] == 0
        if MIGRATES:
            work_queued(t, s)
            migrate_ahead(t, s, counters)
            waiting = advance(t, k, waiting)


def advance(t: Tables, k: Kernels, waiting):
    """The first ``waiting`` touches in `Scratch` run until the next page they miss; how many still do,
    and in `Scratch.moved` how many got on."""
    d, p, x = t.driver, t.pages, t.scratch
    left, moved = 0, 0
    for i in range(waiting):
        touch, before = x.touch[i], x.at[i]
        at = next_missing(d, p, before, k.last[touch])
        moved += at > before
        if at < k.last[touch]:
            x.touch[left], x.at[left] = touch, at
            left += 1
    x.moved[0] = moved
    return left


def move_range(t: Tables, s: States, first, last, to_host, counters):
    """cudaMemPrefetchAsync of pages [first, last) in the kernels' stream (uvm_migrate.c): to the
    device block by block, or whole blocks back to the host, whose frames are free then."""
    d, p, x = t.driver, t.pages, t.scratch
    done = t.time.clock[HANDLER]
    for b in range(first // PAGES, (last - 1) // PAGES + 1):
        d.n[BATCH] += 1
        if to_host:
            chunk, nothing = np.int64(d.chunk_of[b]), np.int64(0)
            if chunk < 0:
                continue
            back = release(d, p, b, counters)
            moved = Moved(nothing, nothing, chunk < 0, back, np.int64(-1), chunk)
            cpu = t.time.costs.evict_ns
        else:
            for w in range(PAGES // 64):
                x.mask[w] = 0
            low = max(first - b * PAGES, 0)
            fill(x.mask, low, min(last - b * PAGES, np.int64(d.n_pages[b])))
            moved = bring(s.order, d, p, b, x.mask, counters)
            cpu = service_ns(t.time.costs, moved)
        arrival, _ = carry(t.time, ROW_SERVICE, cpu, b, 0, moved, False)
        done = max(done, arrival)
    t.time.clock[HANDLER] = max(t.time.clock[HANDLER], done)
    row(t.time, ROW_REPLAY, 0, -1)


def run_kernels(t: Tables, s: States, k: Kernels, first, last):
    """Kernels ``first`` .. ``last - 1``; the tables say what came of it."""
    clock, costs = t.time.clock, t.time.costs
    for i in range(first, last):
        counters = t.counts[k.step[i]]
        start = clock[STREAM]
        if k.copy_bytes[i] > 0:
            ns = (k.copy_bytes[i] * costs.byte_ps_1024 >> 10) // 1000
            clock[H2D] = start = max(clock[H2D], start) + ns
            clock[HANDLER] = start
            row(t.time, ROW_COPY, ns, -1)
        clock[HANDLER] = start
        row(t.time, ROW_KERNEL, 0, i)
        remote = counters[REMOTE]
        for wave in range(start_of(k.wave_hi, i), k.wave_hi[i]):
            if len(k.action) > 0 and k.action[i] > 0:
                to_host = k.action[i] == TO_HOST
                for touch in range(start_of(k.touch_hi, wave), k.touch_hi[wave]):
                    move_range(t, s, k.first[touch], k.last[touch], to_host, counters)
            elif run_wave(t, s, k, wave, counters):
                # The warps that waited for the last pages still have their work to do.
                clock[HANDLER] += k.tail_ns[i]
                row(t.time, ROW_WORK, k.tail_ns[i], -1)
        compute = k.compute_ns[i]
        if counters[REMOTE] > remote:
            compute = max(compute, (counters[REMOTE] - remote) * costs.remote_page_ps // 1000)
        clock[HANDLER] = clock[STREAM] = max(start + compute, clock[HANDLER])
        row(t.time, ROW_END, compute, i)
        t.ends[i] = clock[STREAM]
