"""Fault servicing, step by step as the driver does it (open-gpu-kernel-modules 575.57.08:
uvm_gpu_replayable_faults.c, uvm_va_block.c, uvm_pmm_gpu.c).

`run_kernels` is a template: `uvmsim.core.bind` puts a policy's hooks in the place of those of
`uvmsim.paging.hooks` and compiles this file, `faults`, `regions` and `frames` with them.

A wave of touches runs until none of its pages is missing. Meanwhile, batch by batch: the SMs' faults
are fetched, at most ``Costs.batch`` entries, sorted by address and coalesced; block by block the
region to bring in is computed, a frame allocated (evicting where none is free) and filled; the buffer
is flushed (what was not fetched faults again) and the faults are replayed.

Liberties. A chunk of a block in the batch is not evicted in that batch, since the simulated warps see
their pages at the replay only; where nobody else can go, the batch ends there and the rest faults
again. The copy into a frame does not wait for the copy out of it. A page once resident when its touch
is looked at is not lost to that touch again. See docs/paging.md.
"""

from __future__ import annotations

import numpy as np

from uvmsim.paging.bits import fill
from uvmsim.paging.faults import fetch, missing_from, next_missing
from uvmsim.paging.frames import make_resident, release
from uvmsim.paging.hooks import MIGRATES, RECORDS
from uvmsim.paging.regions import prefetch_mask
from uvmsim.paging.tables import (
    ASYNC,
    BATCH,
    BATCHES,
    COPY,
    D2H,
    END,
    H2D,
    HANDLER,
    KERNEL,
    MIGRATED,
    REMOTE,
    REMOTE_FLAG,
    REPLAY,
    SERVICE,
    TIME,
    TO_HOST,
    WAIT,
    WORK,
)
from uvmsim.policies.pages.base import ASKED, NOW_NS, PAGES
from uvmsim.policies.pages.base import BATCH as BATCH_NUMBER


def row(program, kind, a, b, c, block, victim, chunk, page):
    """Write a row of the program, or only count it; its number."""
    at = program.n[0]
    if RECORDS:
        if at < program.n[1]:
            program.kind[at] = kind
            program.a[at], program.b[at], program.c[at] = a, b, c
            program.block[at], program.victim[at] = block, victim
            program.chunk[at], program.page[at] = chunk, page
        program.n[0] = at + 1
    return at


def way_out_ns(costs, pages):
    """Copying a victim's pages back."""
    return costs.copy_ns + pages * costs.page_out_ps // 1000 if pages > 0 else np.int64(0)


def way_in_ns(costs, operations, pages):
    """Copying pages in, in so many operations."""
    return operations * costs.copy_ns + pages * costs.page_in_ps // 1000


def transfer(clock, costs, at, back_ns, in_ns):
    """Queue the copies of a service ``at`` that time: the victim's way out and the pages' way in.
    Returns when both are done. The way in does not wait for the way out (Costs, docs/paging.md)."""
    done = at
    if back_ns > 0:
        start = max(clock[D2H], at)
        clock[D2H] = done = start + back_ns
        if not costs.duplex:
            clock[H2D] = max(clock[H2D], clock[D2H])
    if in_ns > 0:
        clock[H2D] = max(clock[H2D], at) + in_ns
        done = max(done, clock[H2D])
        if not costs.duplex:
            clock[D2H] = clock[H2D]
    return done


def service(sp, sl, d, p, x, n, costs, clock, counters, program):
    """Serve the blocks of a batch in order of address; when its last copy is done."""
    last = clock[HANDLER]
    served = False
    for i in range(n):
        k = x.order[i]
        b = x.block[k]
        prefetch_mask(sp, d, p, x, b, x.faulted[k], costs.threshold)
        first = np.int64(0)
        while x.faulted[k, first >> 6] >> np.uint64(first & 63) & np.uint64(1) == 0:
            first += 1
        for w in range(PAGES // 64):
            x.mask[w] |= x.faulted[k, w]
        done, pages, operations, entries, back, victim, label = make_resident(
            sl, d, p, b, x.mask, counters
        )
        if not done:
            # Every frame belongs to a block of this batch. If none was served yet, those come first.
            if served:
                break
            continue
        served = True
        cpu = costs.service_ns + entries * costs.map_ns
        if victim >= 0:
            cpu += costs.evict_ns
        clock[HANDLER] += cpu
        back_ns = way_out_ns(costs, back)
        in_ns = way_in_ns(costs, operations, pages)
        if costs.duplex and i > 0 and back > 0:  # the copy in runs beside another block's way out
            in_ns = in_ns * 1000 // costs.duplex_permille
        last = max(last, transfer(clock, costs, clock[HANDLER], back_ns, in_ns))
        row(program, SERVICE, cpu, back_ns, in_ns, b, victim, label, first)
    return last


def migrate_ahead(sl, d, p, x, costs, clock, counters, program):
    """Bring in the blocks the policy asked for, of the process that faulted, without anybody
    waiting (bpf_wq)."""
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
        p.stamp[b] = d.n[BATCH_NUMBER]
        done, pages, operations, _, back, victim, label = make_resident(
            sl, d, p, b, x.mask, counters
        )
        if not done:
            break
        counters[MIGRATED] += 1
        back_ns = way_out_ns(costs, back)
        in_ns = way_in_ns(costs, operations, pages)
        p.arrival[b] = transfer(clock, costs, clock[HANDLER], back_ns, in_ns)
        p.mover[b] = row(program, ASYNC, 0, back_ns, in_ns, b, victim, label, 0)
    d.n[ASKED] = 0


def await_migrations(d, p, first, last, clock, program):
    """A touch of a block that is still on its way waits for it."""
    for b in range(first // PAGES, (last - 1) // PAGES + 1):
        if p.mover[b] >= 0:
            if p.arrival[b] > clock[HANDLER]:
                clock[HANDLER] = p.arrival[b]
                row(program, WAIT, p.mover[b], 0, 0, b, -1, -1, 0)
            p.mover[b] = -1


def run_wave(sp, sl, d, p, x, k, lo, hi, entries, burst, limit, costs, clock, counters, program):
    """Touches ``lo`` .. ``hi - 1`` side by side, until all their pages were there."""
    m = 0
    for t in range(lo, hi):
        if MIGRATES and k.last[t] > k.first[t]:
            await_migrations(d, p, k.first[t], k.last[t], clock, program)
        at = missing_from(d, p, k.first[t], k.last[t], counters)
        if at < k.last[t]:
            x.touch[m], x.at[m] = t, at
            m += 1
    faulted = m > 0
    while m > 0:
        d.n[BATCH_NUMBER] += 1
        active = min(m, limit) if limit > 0 else m
        n, pages = fetch(d, p, x, k.last, active, entries, burst, costs, counters)
        counters[BATCHES] += 1
        cpu = costs.batch_ns + pages * costs.page_ns
        clock[HANDLER] += cpu
        d.n[NOW_NS] = clock[HANDLER]
        row(program, BATCH, cpu, 0, 0, -1, -1, -1, 0)
        end = service(sp, sl, d, p, x, n, costs, clock, counters, program)
        clock[HANDLER] = max(clock[HANDLER], end) + costs.replay_ns
        row(program, REPLAY, costs.replay_ns, 0, 0, -1, -1, -1, 0)
        if MIGRATES:
            migrate_ahead(sl, d, p, x, costs, clock, counters, program)
        left = 0
        for i in range(m):
            t = x.touch[i]
            at = next_missing(d, p, x.at[i], k.last[t])
            if at < k.last[t]:
                x.touch[left], x.at[left] = t, at
                left += 1
        m = left
    if MIGRATES and faulted:  # blocks that were asked for meanwhile and are this wave's own
        for t in range(lo, hi):
            if k.last[t] > k.first[t]:
                await_migrations(d, p, k.first[t], k.last[t], clock, program)
    return faulted


def move_range(sl, d, p, x, first, last, to_host, costs, clock, counters, program):
    """cudaMemPrefetchAsync of pages [first, last) in the kernels' stream (uvm_migrate.c): to the
    device block by block, or whole blocks back to the host, whose frames are free then."""
    done = clock[HANDLER]
    for b in range(first // PAGES, (last - 1) // PAGES + 1):
        d.n[BATCH_NUMBER] += 1
        p.stamp[b] = d.n[BATCH_NUMBER]
        pages = operations = entries = back = np.int64(0)
        victim = np.int64(-1)
        label = np.int64(d.chunk_of[b])
        if to_host:
            if label < 0:
                continue
            back = release(d, p, b, counters)
            cpu = costs.evict_ns
        else:
            for w in range(PAGES // 64):
                x.mask[w] = 0
            low = max(first - b * PAGES, 0)
            fill(x.mask, low, min(last - b * PAGES, np.int64(d.n_pages[b])))
            _, pages, operations, entries, back, victim, label = make_resident(
                sl, d, p, b, x.mask, counters
            )
            cpu = costs.service_ns + entries * costs.map_ns
            if victim >= 0:
                cpu += costs.evict_ns
        clock[HANDLER] += cpu
        back_ns = way_out_ns(costs, back)
        in_ns = way_in_ns(costs, operations, pages)
        done = max(done, transfer(clock, costs, clock[HANDLER], back_ns, in_ns))
        row(program, SERVICE, cpu, back_ns, in_ns, b, victim, label, 0)
    clock[HANDLER] = max(clock[HANDLER], done)
    row(program, REPLAY, 0, 0, 0, -1, -1, -1, 0)


def run_kernels(sp, sl, d, p, x, k, first, last, costs, clock, counts, ends, program):
    """Kernels ``first`` .. ``last - 1``; ``counts`` int64 [steps, COUNTERS] grows, ``ends`` int64 [K]
    gets each kernel's end."""
    for i in range(first, last):
        wave = np.int64(0) if i == 0 else k.wave_hi[i - 1]
        counters = counts[k.step[i]]
        start = clock[TIME]
        if k.copy_bytes[i] > 0:
            ns = (k.copy_bytes[i] * costs.byte_ps_1024 >> 10) // 1000
            row(program, COPY, 0, 0, ns, -1, -1, -1, 0)
            clock[H2D] = start = max(clock[H2D], start) + ns
        row(program, KERNEL, 0, 0, i, -1, -1, -1, 0)
        clock[HANDLER] = start
        remote = counters[REMOTE]
        while wave < k.wave_hi[i]:
            lo = np.int64(0) if wave == 0 else k.touch_hi[wave - 1]
            if len(k.action) > 0 and k.action[i] > 0:
                for touch in range(lo, k.touch_hi[wave]):
                    move_range(
                        sl, d, p, x, k.first[touch], k.last[touch], k.action[i] == TO_HOST, costs,
                        clock, counters, program,
                    )  # fmt: skip
            elif run_wave(
                sp, sl, d, p, x, k, lo, k.touch_hi[wave], k.entries[wave],
                k.burst[wave] if k.burst[wave] > 0 else costs.burst, k.limit[wave], costs, clock,
                counters, program,
            ):  # fmt: skip
                # The warps that waited for the last pages still have their work to do.
                clock[HANDLER] += k.tail_ns[i]
                row(program, WORK, k.tail_ns[i], 0, 0, -1, -1, -1, 0)
            wave += 1
        compute = k.compute_ns[i]
        if counters[REMOTE] > remote:
            compute = max(compute, (counters[REMOTE] - remote) * costs.remote_page_ps // 1000)
        end = max(start + compute, clock[HANDLER])
        row(program, END, compute, 0, i, -1, -1, -1, 0)
        clock[TIME] = end
        ends[i] = end
