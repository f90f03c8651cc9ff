"""Kernel functions that gpu_ext's driver offers to programs, by their names.

Each takes ``(s, d, r1, .., r5, pc)``: registers are uint64. Moves and regions go through the contract
of page policies, so a program may do what a policy in Python may.
"""

from __future__ import annotations

import numpy as np

from uvmsim.bpf.live import (
    CHUNK_STEP,
    N_BLOCKS,
    OWNER_STEP,
    REGION_FIRST,
    REGION_OUTER,
    SPACE_AT,
    write,
)
from uvmsim.bpf.maps import readable_or_none
from uvmsim.bpf.memory import fail, offset_of, segment_of
from uvmsim.bpf.places import BLOCK_BYTES, CHUNKS, OWNERS, REGIONS, VA_BASE
from uvmsim.bpf.state import BAD_STORE, START
from uvmsim.bpf.words import get_u8
from uvmsim.policies.pages.base import migrate, move_head, move_tail

_0 = np.uint64(0)
INVALID = np.uint64(2**64 - 22)
PAGE_INDEX = np.uint64(0xFFFF)
REGION_STEP = 64


def set_region(s, d, r1, r2, r3, r4, r5, pc):
    """uvm_va_block_region(first, outer) into a region that a hook was given; page indices have 16
    bits."""
    offset = offset_of(r1)
    if segment_of(r1) != np.uint64(REGIONS) or offset % REGION_STEP or offset > 2 * REGION_STEP:
        fail(s, BAD_STORE, r1, pc)
    at = s.seg[REGIONS, START] + offset
    write(s, at, REGION_FIRST, r2 & PAGE_INDEX)
    write(s, at, REGION_OUTER, r3 & PAGE_INDEX)
    return _0


def chunk_of(s, address):
    """Number of the chunk that an address is, -1."""
    step = s.layout[CHUNK_STEP]
    if segment_of(address) != np.uint64(CHUNKS) or offset_of(address) % step:
        return np.int64(-1)
    return offset_of(address) // step


def block_move_head(s, d, r1, r2, r3, r4, r5, pc):
    move_head(d, chunk_of(s, r1))
    return _0


def block_move_tail(s, d, r1, r2, r3, r4, r5, pc):
    move_tail(d, chunk_of(s, r1))
    return _0


def migrate_range(s, d, r1, r2, r3, r4, r5, pc):
    """Whole blocks that [address, address + length) of a process's VA space touches."""
    space, length = r1, np.int64(r3)
    first = np.int64(r2 - np.uint64(VA_BASE)) // BLOCK_BYTES
    if length <= 0 or first < 0 or first >= s.layout[N_BLOCKS] or length > BLOCK_BYTES << 18:
        return INVALID
    last = (np.int64(r2 - np.uint64(VA_BASE)) + length - 1) // BLOCK_BYTES
    for block in range(first, min(last + 1, s.layout[N_BLOCKS])):
        owner = np.int64(d.tenant_of[block]) * s.layout[OWNER_STEP] + s.layout[SPACE_AT]
        if segment_of(space) == np.uint64(OWNERS) and offset_of(space) != owner:
            continue
        migrate(d, block)
    return _0


def strstr(s, d, r1, r2, r3, r4, r5, pc):
    """Place of the second text in the first, -1 (bpf_uvm_strstr)."""
    n, m = np.int64(r2 & np.uint64(0xFFFFFFFF)), np.int64(r4 & np.uint64(0xFFFFFFFF))
    if m == 0 or n < m or n > 4096:
        return np.uint64(0) if m == 0 else np.uint64(2**64 - 1)
    a = readable_or_none(s, d, r1, n, pc)
    b = readable_or_none(s, d, r3, m, pc)
    if a < 0 or b < 0:
        return np.uint64(2**64 - 1)
    for i in range(n - m + 1):
        j = 0
        while j < m and get_u8(s.mem, a + i + j) == get_u8(s.mem, b + j):
            j += 1
        if j == m:
            return np.uint64(i)
    return np.uint64(2**64 - 1)


KERNEL_FUNCTIONS = {
    "bpf_uvm_set_va_block_region": set_region, "bpf_gpu_set_prefetch_region": set_region,
    "bpf_uvm_pmm_chunk_move_head": block_move_head, "bpf_gpu_block_move_head": block_move_head,
    "bpf_uvm_pmm_chunk_move_tail": block_move_tail, "bpf_gpu_block_move_tail": block_move_tail,
    "bpf_gpu_migrate_range": migrate_range,
    "bpf_uvm_strstr": strstr, "bpf_gpu_strstr": strstr,
}  # fmt: skip
"""Both generations' names (struct uvm_gpu_ext of January 2026, gpu_mem_ops of April)."""
