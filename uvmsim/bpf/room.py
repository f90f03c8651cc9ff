"""Room for an object's memory: segments, maps, sections of data, at rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from traces.errors import InputError
from uvmsim.bpf import state as st
from uvmsim.bpf.names import HASHES, RINGBUF
from uvmsim.bpf.object import Object
from uvmsim.bpf.places import CONTEXT, FRAME_BYTES, FRAMES, KEYS, LAST_OF_KERNEL, RECORDS, STACK

CONTEXT_BYTES = 256
"""Arguments of a hook, and pt_regs (168 bytes)."""
LARGEST = 1 << 32
"""Bytes of everything."""


@dataclass(frozen=True)
class Plan:
    """Which segment is whose."""

    data: dict[str, int]
    """Sections of data."""
    maps: list[int]
    """Segment of each map."""


def plan_of(made: Object) -> Plan:
    """Segments: the driver's, then sections of data, then maps."""
    first = LAST_OF_KERNEL + 1
    data = {name: first + i for i, name in enumerate(sorted(made.data))}
    return Plan(data, [first + len(data) + i for i in range(len(made.maps))])


def new_state(made: Object, kernel: Sequence[int], layout: np.ndarray, seed: int = 0) -> st.State:
    """Memory, maps and numbers at rest. ``kernel``: bytes of the segments of the driver's structures,
    `FIRST_LIVE` and on. Raises `InputError` where it is too much."""
    plan = plan_of(made)
    records = max((m.entries for m in made.maps if m.type == RINGBUF), default=0)
    sizes = [(0, 0)] * (LAST_OF_KERNEL + 1 + len(plan.data) + len(plan.maps))
    sizes[STACK] = (FRAMES * FRAME_BYTES,) * 2
    sizes[CONTEXT] = (CONTEXT_BYTES, 0)
    sizes[RECORDS] = (records, records)
    sizes[KEYS] = (8, 0)
    for i, n in enumerate(kernel):
        sizes[LAST_OF_KERNEL + 1 - len(kernel) + i] = (n, 0)
    for name, segment in plan.data.items():
        n = len(made.data[name])
        sizes[segment] = (n, 0 if name.startswith(".rodata") else n)
    columns = np.full((len(made.maps), st.MAP_COLUMNS), -1, np.int64)
    links = 0
    for i, m in enumerate(made.maps):
        key = -(-m.key // 8) * 8 if m.type in HASHES else 0
        stride = key + -(-m.value // 8) * 8
        if m.type != RINGBUF:
            sizes[plan.maps[i]] = (m.entries * stride,) * 2
        columns[i, :7] = m.type, m.key, m.value, m.entries, plan.maps[i], max(stride, 8), key
        if m.type in HASHES:
            buckets = 1 << max(m.entries - 1, 1).bit_length()
            columns[i, st.BUCKETS], columns[i, st.N_BUCKETS] = links, buckets
            at = links + buckets
            columns[i, st.CHAIN : st.NEWER + 1] = at, at + m.entries, at + 2 * m.entries
            columns[i, st.USED], columns[i, st.FREE] = 0, 0
            links = at + 3 * m.entries
    seg = np.zeros((len(sizes), 3), np.int64)
    at = 64
    for i, (readable, writable) in enumerate(sizes):
        seg[i] = at, readable, writable
        at += -(-readable // 64) * 64
    if at + 4 * links > LARGEST:
        raise InputError(f"{made.path}: needs {at >> 20} MiB of memory; at most {LARGEST >> 20}")
    table = np.full(max(links, 1), -1, np.int32)
    for row in columns:
        if row[st.FREE] == 0:
            chain, n = row[st.CHAIN], row[st.ENTRIES]
            table[chain : chain + n] = np.arange(1, n + 1)
            table[chain + n - 1] = -1
    mem = np.zeros(at, np.uint8)
    for name, segment in plan.data.items():
        start = seg[segment, st.START]
        mem[start : start + len(made.data[name])] = np.frombuffer(made.data[name], np.uint8)
    numbers = np.zeros(st.NUMBERS, np.int64)
    numbers[st.SEED], numbers[st.BATCH], numbers[st.BLOCK] = seed, -1, -1
    work = np.zeros((st.WORK_ITEMS, 4), np.int64)
    return st.State(mem, seg, columns, table, numbers, work, layout)
