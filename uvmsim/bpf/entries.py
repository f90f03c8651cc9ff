"""Entries of a hash before a run: as `uvmsim.bpf.maps` has them, in Python."""

from __future__ import annotations

import numpy as np

from uvmsim.bpf.maps import is_lru, push_use
from uvmsim.bpf.state import (
    BUCKETS,
    CHAIN,
    FREE,
    N_BUCKETS,
    SEGMENT,
    START,
    STRIDE,
    USED,
    State,
)

ALL = (1 << 64) - 1


def entry(s: State, m: int, key: bytes) -> int:
    """The element under a key, made if need be; -1: the map is full."""
    row = s.maps[m]
    h = 14695981039346656037
    for byte in key:
        h = (h ^ byte) * 1099511628211 & ALL
    h ^= h >> 32
    bucket = int(row[BUCKETS]) + (h & (int(row[N_BUCKETS]) - 1))
    start, chain = int(s.seg[row[SEGMENT], START]), int(row[CHAIN])
    i = int(s.table[bucket])
    while i >= 0:
        at = start + i * int(row[STRIDE])
        if bytes(s.mem[at : at + len(key)]) == key:
            return i
        i = int(s.table[chain + i])
    i = int(row[FREE])
    if i < 0:
        return -1
    row[FREE] = s.table[chain + i]
    at = start + i * int(row[STRIDE])
    s.mem[at : at + len(key)] = np.frombuffer(key, np.uint8)
    s.table[chain + i], s.table[bucket] = s.table[bucket], i
    row[USED] += 1
    if is_lru(s, m):
        push_use(s, m, i)
    return i
