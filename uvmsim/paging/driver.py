"""Fault servicing, step by step as the driver does it (open-gpu-kernel-modules 575.57.08:
uvm_gpu_replayable_faults.c, uvm_va_block.c, uvm_pmm_gpu.c).

The names in capitals and the hooks (``page_prefetch``, ``block_access``, ...) are globals put in by
`uvmsim.paging.bind`, as are the compiled forms of all functions here.

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

from uvmsim.paging.bits import count, fill, lowest, mappings, next_clear, popcount, runs
from uvmsim.paging.tables import (
    ACCESSED_BY,
    ACTIVATED,
    ASYNC,
    BATCH,
    BATCHES,
    COPIES,
    COPY,
    D2H,
    END,
    EVICTED,
    FAULTS,
    H2D,
    HANDLER,
    KERNEL,
    MIGRATED,
    PAGES_IN,
    PAGES_OUT,
    PREFER_GPU,
    READ_MOSTLY,
    REMOTE,
    REMOTE_FLAG,
    REPLAY,
    SERVICE,
    SERVICES,
    TIME,
    WAIT,
    WORK,
    ZEROED,
)
from uvmsim.paging.tree import densest, grow
from uvmsim.policies.pages.base import (
    ACTIVATES,
    ASKED,
    BYPASS,
    CURRENT,
    ENTER_LOOP,
    FIRST,
    MAX_FIRST,
    MAX_OUTER,
    NOW_NS,
    OUTER,
    PAGES,
    move_tail,
)
from uvmsim.policies.pages.base import BATCH as BATCH_NUMBER

HAS_PREFETCH = HAS_ORDER = MIGRATES = RECORDS = False


def page_prefetch(sp, d, block, page, region): ...  # pragma: no cover - put in by bind
def page_prefetch_iter(sp, d, block, first, outer, counter, region): ...  # pragma: no cover
def block_activate(sl, d, chunk): ...  # pragma: no cover
def block_access(sl, d, chunk): ...  # pragma: no cover
def evict_prepare(sl, d): ...  # pragma: no cover


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


def missing_from(d, p, page, last, counters):
    """First page in [page, last) that is neither resident nor read remotely; counts those read
    remotely in all of it."""
    found = last
    while page < last:
        b = page // PAGES
        end = min((b + 1) * PAGES, last)
        if p.advice[b] & REMOTE_FLAG or (p.advice[b] & ACCESSED_BY and d.chunk_of[b] < 0):
            counters[REMOTE] += end - page
        elif found == last and d.n_resident[b] != d.n_pages[b]:
            q = next_clear(d.resident[b], page - b * PAGES, end - b * PAGES) + b * PAGES
            if q < end:
                found = q
        page = end
    return found


def fetch(d, p, x, last, m, entries, burst, costs, counters):
    """Fill a batch: SM by SM (touch by touch) a burst of missing pages, round and round, until the
    batch is full or nothing is missing. Blocks are numbered in ``x.block``; returns how many."""
    number = d.n[BATCH_NUMBER]
    used, n, distinct = np.int64(0), 0, np.int64(0)
    for i in range(m):
        x.scan[i] = x.at[i]
    progress = True
    while used < costs.batch and progress:
        progress = False
        for i in range(m):
            taken = 0
            end = last[x.touch[i]]
            q = x.scan[i]
            while q < end and taken < burst and used < costs.batch:
                b = q // PAGES
                if p.advice[b] & REMOTE_FLAG or (p.advice[b] & ACCESSED_BY and d.chunk_of[b] < 0):
                    q = (b + 1) * PAGES
                    continue
                stop = min((b + 1) * PAGES, end)
                q = next_clear(d.resident[b], q - b * PAGES, stop - b * PAGES) + b * PAGES
                if q >= stop:
                    continue
                if p.stamp[b] != number:
                    p.stamp[b] = number
                    p.slot[b] = n
                    x.block[n] = b
                    for w in range(PAGES // 64):
                        x.faulted[n, w] = 0
                    n += 1
                bit = np.uint64(1) << np.uint64(q & 63)
                w = (q - b * PAGES) >> 6
                s = p.slot[b]
                if x.faulted[s, w] & bit == 0:
                    x.faulted[s, w] |= bit
                    distinct += 1
                used += entries
                taken += 1
                q += 1
            if taken:
                progress = True
            x.scan[i] = q
    # Sorted by address: blocks ascending (mostly they are), pages as bits.
    for i in range(n):
        x.order[i] = i
    for i in range(1, n):
        k = x.order[i]
        j = i - 1
        while j >= 0 and x.block[x.order[j]] > x.block[k]:
            x.order[j + 1] = x.order[j]
            j -= 1
        x.order[j + 1] = k
    counters[FAULTS] += distinct
    return n, distinct


def prefetch_mask(sp, d, p, x, b, faulted, threshold):
    """Pages to bring in beside those that faulted, into ``x.mask`` (compute_prefetch_mask)."""
    n_pages = np.int64(d.n_pages[b])
    region = x.region
    for w in range(PAGES // 64):
        x.mask[w] = 0
    if p.populated[b] == 0 and p.advice[b] & PREFER_GPU:
        fill(x.mask, 0, n_pages)  # first touch, data nowhere, at its preferred location
        return
    for w in range(PAGES // 64):
        d.accessed[w] = d.resident[b, w] | faulted[w]
    grow(d.accessed, faulted, n_pages)
    for w in range(PAGES // 64):
        bits = faulted[w]
        while bits:
            page = np.int64(64 * w + lowest(bits))
            bits &= bits - np.uint64(1)
            region[MAX_FIRST], region[MAX_OUTER] = 0, n_pages
            region[FIRST] = region[OUTER] = 0
            action = 0
            if HAS_PREFETCH:
                action = page_prefetch(sp, d, np.int64(b), page, region)
                if action == ENTER_LOOP:
                    size = np.int64(1)
                    while True:
                        first = page // size * size
                        outer = min(first + size, n_pages)
                        counter = count(d.accessed, first, outer)
                        page_prefetch_iter(sp, d, np.int64(b), first, outer, counter, region)
                        if size >= n_pages:
                            break
                        size *= 2
            elif x.mask[w] >> np.uint64(page & 63) & np.uint64(1):
                continue  # the tree did not change: the region found before is this page's too
            if action != BYPASS and action != ENTER_LOOP:
                densest(d.accessed, page, n_pages, threshold, region)
            first = min(max(region[FIRST], 0), n_pages)  # type: ignore[arg-type]
            outer = min(max(region[OUTER], first), n_pages)
            fill(x.mask, first, outer)
            if outer == n_pages and outer > first:
                return


def unlink(d, chunk):
    """Take a chunk out of the used list."""
    d.next[d.prev[chunk]] = d.next[chunk]
    d.prev[d.next[chunk]] = d.prev[chunk]


def to_tail(d, chunk):
    """Put a chunk that is in no list at the tail."""
    end = len(d.next) - 1
    tail = d.prev[end]
    d.prev[end] = d.next[tail] = chunk
    d.prev[chunk], d.next[chunk] = tail, end


def take_chunk(sl, d, p, counters):
    """A frame: a free one, or the head's, evicted. Returns the chunk (-1 if all are busy in this
    batch), pages to copy back, and the block that lost it (-1)."""
    if p.n_free[0] > 0:
        p.n_free[0] -= 1
        return np.int64(p.free[p.n_free[0]]), np.int64(0), np.int64(-1)
    if HAS_ORDER:
        d.n[CURRENT] = -1
        evict_prepare(sl, d)
    end = np.int64(len(d.next) - 1)
    chunk = np.int64(d.next[end])
    while chunk != end and p.stamp[d.block_of[chunk]] == d.n[BATCH_NUMBER]:
        chunk = np.int64(d.next[chunk])
    if chunk == end:
        return np.int64(-1), np.int64(0), np.int64(-1)
    b = np.int64(d.block_of[chunk])
    back = np.int64(0) if p.advice[b] & READ_MOSTLY else np.int64(d.n_resident[b])
    unlink(d, chunk)
    d.chunk_of[b] = -1
    d.block_of[chunk] = -1
    d.n_resident[b] = 0
    for w in range(PAGES // 64):
        d.resident[b, w] = 0
    counters[EVICTED] += 1
    counters[PAGES_OUT] += back
    return chunk, back, b


def make_resident(sl, d, p, b, mask, counters):
    """Bring ``mask``'s missing pages of block ``b`` in. Returns (done, pages copied, copies, page table
    entries, pages to copy back, block evicted, chunk)."""
    chunk = np.int64(d.chunk_of[b])
    back, victim = np.int64(0), np.int64(-1)
    label = chunk
    if chunk < 0:
        chunk, back, victim = take_chunk(sl, d, p, counters)
        if chunk < 0:
            return False, np.int64(0), np.int64(0), np.int64(0), back, victim, chunk
        label = -1 - chunk
        d.chunk_of[b] = chunk
        d.block_of[chunk] = b
        counters[ACTIVATED] += 1
        d.n[ACTIVATES] += 1
        to_tail(d, chunk)
        if HAS_ORDER:
            d.n[CURRENT] = chunk
            block_activate(sl, d, chunk)
    pages = np.int64(0)
    for w in range(PAGES // 64):
        mask[w] &= ~d.resident[b, w]
        pages += popcount(mask[w])
    operations = runs(mask, PAGES // 64)
    entries = mappings(mask, PAGES // 64)
    for w in range(PAGES // 64):
        d.resident[b, w] |= mask[w]
    d.n_resident[b] += pages
    if p.populated[b] == 0:
        p.populated[b] = 1
        counters[ZEROED] += pages
        pages, operations = np.int64(0), np.int64(0)
    # used_list: the policy first, then the driver's own move unless bypassed
    action = np.int64(0)
    d.n[CURRENT] = chunk
    if HAS_ORDER:
        action = np.int64(block_access(sl, d, chunk))
    if action != BYPASS:
        move_tail(d, chunk)  # type: ignore[arg-type]
    counters[SERVICES] += 1
    counters[PAGES_IN] += pages
    counters[COPIES] += operations
    return True, pages, operations, entries, back, victim, label


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
        back_ns = costs.copy_ns + back * costs.page_out_ps // 1000 if back > 0 else np.int64(0)
        in_ns = operations * costs.copy_ns + pages * costs.page_in_ps // 1000
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
        back_ns = costs.copy_ns + back * costs.page_out_ps // 1000 if back > 0 else np.int64(0)
        in_ns = operations * costs.copy_ns + pages * costs.page_in_ps // 1000
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


def next_missing(d, p, page, last):
    """`missing_from` without counting remote reads again."""
    while page < last:
        b = page // PAGES
        end = min((b + 1) * PAGES, last)
        remote = p.advice[b] & REMOTE_FLAG or (p.advice[b] & ACCESSED_BY and d.chunk_of[b] < 0)
        if not remote and d.n_resident[b] != d.n_pages[b]:
            q = next_clear(d.resident[b], page - b * PAGES, end - b * PAGES) + b * PAGES
            if q < end:
                return q
        page = end
    return last


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
            if run_wave(
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
