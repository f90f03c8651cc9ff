"""A simulated run of the paging driver as a fault trace, for `uvmsim trace` and gpu_ext's scripts.

The events are those of gpu_ext's chunk_trace (chunk_activate, chunk_access, eviction_prepare), the
victims (eviction), which the real tracer cannot see, and one gpu_fault a block service: its first
faulted page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import InputError
from traces.faults.writer import FaultWriter
from uvmsim.machine.hardware import Hardware
from uvmsim.paging import tables as t
from uvmsim.paging.drive import PagedRun, Setup
from uvmsim.paging.layout import BLOCK, PAGE

VA_BASE = 0x7000_0000_0000
CHUNK_BASE, CHUNK_STEP = 0xFFFF_8880_0000_0000, 0x100
USED_LIST, UNUSED_LIST = 0xFFFF_8870_0000_0000, 0xFFFF_8870_0000_0010
FIRST_PROCESS = 1000
ROWS = 1 << 18
"""Services turned into events at a time."""
KINDS = ("gpu_fault", "eviction_prepare", "eviction", "chunk_activate", "chunk_access")
FAULT, PREPARE, EVICT, ACTIVATE, ACCESS = range(5)


def write_trace(
    path: str | Path, paged: PagedRun, setup: Setup, hw: Hardware, meta: dict[str, Any]
) -> int:
    """Write a run that has its program to ``path``; returns the number of events."""
    program = paged.program
    assert program is not None
    served = np.flatnonzero((program.kind == t.ROW_SERVICE) | (program.kind == t.ROW_ASYNC))
    if not len(served):
        raise InputError(
            f"{path}: no page ever faulted, so there is nothing to write; more --ratio"
        )
    words = {"tool": "uvmsim, simulated", "machine": {"gpu": hw.gpu}} | meta
    total = 0
    try:
        writer = FaultWriter(path, words, optional=("unused_list", "thread"))
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror or e})") from None
    try:
        for at in range(0, len(served), ROWS):
            total += _append(writer, program, served[at : at + ROWS], setup)
        writer.close()
    except BaseException:
        writer.discard()
        raise
    return total


def _append(writer: FaultWriter, program: t.Program, rows: np.ndarray, setup: Setup) -> int:
    """The events of some services, in order."""
    n = len(rows)
    block, victim = program.block[rows].astype(np.int64), program.victim[rows].astype(np.int64)
    label, page = program.chunk[rows].astype(np.int64), program.page[rows].astype(np.int64)
    fresh, evicts = label < 0, victim >= 0
    chunk = np.where(fresh, -1 - label, label)
    pages_back = program.back[rows].astype(np.int64)
    there = np.ones((n, len(KINDS)), bool)
    there[:, FAULT] = program.kind[rows] == t.ROW_SERVICE
    there[:, PREPARE] = there[:, EVICT] = evicts
    there[:, ACTIVATE] = fresh
    there[:, ACCESS] = ~fresh
    time = np.repeat(program.clock_ns[rows][:, None], len(KINDS), axis=1)
    time[:, FAULT] -= program.own_ns[rows]
    whose = np.repeat(block[:, None], len(KINDS), axis=1)
    whose[:, EVICT] = victim
    start = VA_BASE + whose * BLOCK
    address = start.copy()
    address[:, FAULT] += page * PAGE
    size = np.full((n, len(KINDS)), BLOCK)
    size[:, FAULT] = PAGE
    size[:, EVICT] = pages_back * PAGE
    frame = (np.uint64(CHUNK_BASE) + chunk.astype(np.uint64) * np.uint64(CHUNK_STEP))[:, None]
    kind = np.broadcast_to(np.arange(len(KINDS), dtype=np.int8), there.shape)
    codes = kind[there]
    prepare, fault = codes == PREPARE, codes == FAULT
    used = np.full(len(codes), USED_LIST, np.uint64)
    writer.append(
        time_ns=time[there],
        kind=pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(KINDS)),
        address=pa.array(address[there].astype(np.uint64), mask=prepare),
        bytes=pa.array(size[there], mask=prepare),
        process=pa.array(
            (FIRST_PROCESS + setup.tenant_of[whose[there]].astype(np.int32)), mask=prepare
        ),
        va_block=pa.array(start[there].astype(np.uint64), mask=prepare),
        chunk=pa.array(np.broadcast_to(frame, there.shape)[there], mask=prepare | fault),
        list=pa.array(used, mask=(codes == FAULT) | (codes == EVICT)),
        unused_list=pa.array(np.full(len(codes), UNUSED_LIST, np.uint64), mask=~prepare),
        thread=pa.array(np.ones(len(codes), np.int32)),
    )
    return len(codes)
