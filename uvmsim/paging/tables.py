"""The driver's tables: what is resident, which frame holds what, counters, costs, clock, program."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import PAGES, Driver

BATCHES, FAULTS, SERVICES, ACTIVATED, EVICTED, PAGES_IN, PAGES_OUT, COPIES, ZEROED, REMOTE = range(
    10
)
MIGRATED, HOOK_ERROR, ENTRIES, COUNTERS = 10, 11, 12, 13
"""Places in a row of counters: fault batches, distinct faulted pages, block services, chunks
allocated, chunks evicted, pages copied in, pages copied back, copy operations in, pages given without
a copy (first touch), pages read across the link, blocks migrated ahead, hook errors, entries of the
fault buffer."""

REMOTE_FLAG, READ_MOSTLY, PREFER_GPU, ACCESSED_BY = 1, 2, 4, 8
"""Bits of `Pages.advice` (cudaMemAdvise): preferred location CPU (kernels read across the link,
block_select_residency), read-mostly (a copy stays with the CPU, eviction copies nothing), preferred
location GPU, accessed by the GPU (read across the link once evicted)."""

STREAM, HANDLER, H2D, D2H = range(4)
"""Places in the clock: when the GPU's stream, the fault handler, the copy engines are free."""

ROW_KERNEL, ROW_BATCH, ROW_SERVICE, ROW_REPLAY, ROW_WORK, ROW_ASYNC, ROW_WAIT, ROW_COPY, ROW_END = (
    range(9)
)
"""Kinds of a program row: a kernel begins; a fault batch is fetched; a block is served; the faults are
replayed after the batch's copies; the warps that waited do their work; a service that nobody waits
for; somebody waits for such a one after all; an explicit copy before the next kernel; a kernel ends."""

TO_DEVICE, TO_HOST = 1, 2
"""`Kernels.action`: a prefetch instead of a kernel."""


class Pages(NamedTuple):
    """What belongs to pages beside `Driver`."""

    advice: np.ndarray
    """uint8 [B]: bits as above."""
    populated: np.ndarray
    """uint8 [B]: the block has held data; the first touch of others copies nothing."""
    arrival: np.ndarray
    """int64 [B]: when an asynchronous migration arrives, ns."""
    mover: np.ndarray
    """int64 [B]: program row of that migration, -1."""
    stamp: np.ndarray
    """int64 [B]: batch that the block faulted in last."""
    slot: np.ndarray
    """int64 [B]: place of the block among those of its batch."""
    mapped: np.ndarray
    """uint8 [B]: the block's host pages are mapped for the copy engines."""
    free: np.ndarray
    """int32 [C]: stack of free chunks."""
    n_free: np.ndarray
    """int64 [1]"""


class Scratch(NamedTuple):
    """Room for one fault batch, and for the touches of a wave."""

    block: np.ndarray
    """int64 [batch]: VA blocks that faulted, in the order of their first fault."""
    order: np.ndarray
    """int64 [batch]: their places by address."""
    faulted: np.ndarray
    """uint64 [batch, 8]: pages of each that faulted."""
    touch: np.ndarray
    """int64 [touches]: unfinished touches of the wave."""
    at: np.ndarray
    """int64 [touches]: first page each still needs."""
    scan: np.ndarray
    """int64 [touches]: how far a batch has read each."""
    moved: np.ndarray
    """int64 [1]: touches that got on at the last replay."""
    region: np.ndarray
    """int64 [4]: what `PagePolicy.page_prefetch` answers in."""
    mask: np.ndarray
    """uint64 [8]: pages to bring in."""


class Costs(NamedTuple):
    """The driver's constants, int64; see `uvmsim.machine.hardware.UvmCosts`."""

    batch_ns: int
    """A batch, whatever is in it: interrupt, flush of the buffer, replay, until the warps run on."""
    entry_ns: int
    """An entry of the fault buffer, duplicates included."""
    first_touch_ns: int
    """A block whose host pages were never mapped for the GPU's copy engines."""
    evict_ns: int
    """A victim: choosing and unmapping it."""
    copy_ns: int
    """Fixed part of one copy operation."""
    page_in_ps: int
    """Picoseconds a 4 KiB page takes on the link."""
    page_out_ps: int
    remote_page_ps: int
    byte_ps_1024: int
    """1024ths of a picosecond a byte takes, for explicit copies."""
    duplex: int
    duplex_permille: int
    """Share of its speed that a copy keeps while the other direction runs."""
    batch: int
    """Fault entries of a batch (uvm_perf_fault_batch_count)."""
    threshold: int
    service_ns: int
    """A block, beside its copies."""
    look: int
    """Entries that are in the buffer when the handler looks; 0: as the kernels say."""
    push_ns: int
    """A page that comes in: the handler's part in copying and mapping it."""


class Program(NamedTuple):
    """What the driver decided, R rows, with its clock; written only if there is room for them."""

    kind: np.ndarray
    """int8 [R]: ``ROW_KERNEL`` and so on."""
    own_ns: np.ndarray
    """int64 [R]: what the row itself takes: the handler's time; of ``ROW_WORK`` the warps', of
    ``ROW_COPY`` the copy's, of ``ROW_END`` the kernel's when all is resident."""
    out_ns: np.ndarray
    """int64 [R]: the victim's way out, of a service."""
    in_ns: np.ndarray
    """int64 [R]: the pages' way in."""
    ref: np.ndarray
    """int64 [R]: kernel of ``ROW_KERNEL`` and ``ROW_END``; row that ``ROW_WAIT`` waits for; else -1."""
    clock_ns: np.ndarray
    """int64 [R]: the handler's clock when the row is done. A service began ``own_ns`` before."""
    block: np.ndarray
    """int32 [R]: VA block of a service, -1."""
    victim: np.ndarray
    """int32 [R]: VA block that was evicted for it, -1."""
    back: np.ndarray
    """int32 [R]: pages of it that are copied back."""
    chunk: np.ndarray
    """int32 [R]: chunk it was served in; negative minus 1 where it was allocated just now."""
    page: np.ndarray
    """int32 [R]: first page that faulted."""
    n: np.ndarray
    """int64 [1]: rows so far, more than R where there was no room."""


class Time(NamedTuple):
    """What things take, when it is, and the record of both."""

    costs: Costs
    clock: np.ndarray
    """int64 [4], ns: ``STREAM``, ``HANDLER``, ``H2D``, ``D2H``."""
    program: Program


class Tables(NamedTuple):
    """All that a run of the driver reads and writes, but for its kernels: S steps, K kernels."""

    driver: Driver
    pages: Pages
    scratch: Scratch
    time: Time
    counts: np.ndarray
    """int64 [S, COUNTERS]"""
    ends: np.ndarray
    """int64 [K]: when each kernel ended, ns."""


class States(NamedTuple):
    """What a policy's hooks keep between calls; one and the same where one policy has all hooks."""

    prefetch: Any
    order: Any


def new_driver(n_pages: np.ndarray, tenant: np.ndarray, n_chunks: int, requests: int) -> Driver:
    """An empty device memory of ``n_chunks`` frames."""
    blocks = len(n_pages)
    chain = np.full(n_chunks + 1, n_chunks, np.int32)
    return Driver(
        np.zeros((blocks, PAGES // 64), np.uint64), np.zeros(blocks, np.int32),
        n_pages.astype(np.int32), np.full(blocks, -1, np.int32), np.full(n_chunks, -1, np.int32),
        chain, chain.copy(), tenant.astype(np.int8), np.zeros(PAGES // 64, np.uint64),
        np.zeros(requests, np.int64), np.zeros(8, np.int64),
    )  # fmt: skip


def new_pages(advice: np.ndarray, populated: np.ndarray, n_chunks: int) -> Pages:
    """Nothing on its way, all frames free."""
    blocks = len(advice)
    return Pages(
        advice.astype(np.uint8), populated.astype(np.uint8), np.zeros(blocks, np.int64),
        np.full(blocks, -1, np.int64), np.full(blocks, -1, np.int64), np.zeros(blocks, np.int64),
        np.zeros(blocks, np.uint8), np.arange(n_chunks, dtype=np.int32)[::-1].copy(),
        np.array([n_chunks], np.int64),
    )  # fmt: skip


def new_scratch(batch: int, touches: int) -> Scratch:
    """Room for batches of ``batch`` entries and waves of ``touches``."""
    i64 = np.int64
    return Scratch(
        np.zeros(batch, i64), np.zeros(batch, i64), np.zeros((batch, PAGES // 64), np.uint64),
        np.zeros(touches, i64), np.zeros(touches, i64), np.zeros(touches, i64), np.zeros(1, i64),
        np.zeros(4, i64),
        np.zeros(PAGES // 64, np.uint64),
    )  # fmt: skip


def new_program(rows: int) -> Program:
    """Room for ``rows`` rows; 0 writes none."""
    i32, i64 = np.int32, np.int64
    return Program(
        np.zeros(rows, np.int8), np.zeros(rows, i64), np.zeros(rows, i64), np.zeros(rows, i64),
        np.full(rows, -1, i64), np.zeros(rows, i64), np.full(rows, -1, i32),
        np.full(rows, -1, i32), np.zeros(rows, i32), np.full(rows, -1, i32), np.zeros(rows, i32),
        np.zeros(1, i64),
    )  # fmt: skip
