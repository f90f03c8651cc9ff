"""What a translated program works on: flat arrays, and nothing else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

START, READABLE, WRITABLE = range(3)
"""Columns of `State.seg`."""

BUDGET, FAULT, FAULT_AT, FAULT_ADDRESS, MISSED, PRINTED, SENT, SENT_BYTES = range(8)
RING_OPEN, RING_NEXT, SEED, QUEUED, NOW_NS, BATCH, BLOCK, DENIED, UNDONE = range(8, 17)
REGISTERS = 20
"""Places in `State.n`: steps left in this call; kind, place (function << 20 | instruction) and
address of the fault; loads of addresses that hold nothing; lines printed; records sent and their
bytes; records open, next place in the record memory; the random number generator; work queued; the
clock, ns; the fault batch and block that the hint probe has seen; map updates that failed for want of
room; work items beyond the room for them; ten registers, kept where a program is translated with
``keep``."""
NUMBERS = 32

NO_FAULT, BAD_ACCESS, BAD_STORE, NO_BUDGET, BAD_MAP = (np.int64(i) for i in range(5))
"""Kinds of faults. What is passed to compiled functions is no plain int: they would be compiled anew
for each value."""

KIND, KEY, VALUE, ENTRIES, SEGMENT, STRIDE, VALUE_AT = range(7)
BUCKETS, N_BUCKETS, CHAIN, OLDER, NEWER, USED, FREE, OLDEST, NEWEST = range(7, 16)
MAP_COLUMNS = 16
"""Columns of `State.maps`: type; bytes of key and value; entries; segment; bytes from element to
element; where the value begins in one; of hashes, places in `State.table`: buckets (and how many, a
power of two), chains, neighbours by use; then elements in use, free list, least and most recent."""

W_ADDRESS, W_CALLBACK, W_MAP, W_PENDING = range(4)
WORK_ITEMS = 256
"""Rows of `State.work`, and how many there are."""


class State(NamedTuple):
    """Memory of M bytes in S segments, maps, numbers. A program reaches ``mem`` alone, through
    `uvmsim.bpf.memory`, and maps through `uvmsim.bpf.maps`."""

    mem: np.ndarray
    """uint8 [M]"""
    seg: np.ndarray
    """int64 [S, 3]: where a segment starts in ``mem``, how many bytes may be read, how many written."""
    maps: np.ndarray
    """int64 [maps, MAP_COLUMNS]"""
    table: np.ndarray
    """int32: buckets and links of hashes; -1: none."""
    n: np.ndarray
    """int64 [NUMBERS]"""
    work: np.ndarray
    """int64 [WORK_ITEMS, 4]: address of a bpf_wq, its callback, its map, and its place in the queue
    (0: not queued)."""
    layout: np.ndarray
    """int64: where fields of kernel structures lie; `uvmsim.policies.bpf.layout`."""
