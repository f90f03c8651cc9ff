"""The driver's structures as a program sees them, laid out by the object's own BTF.

The driver keeps arrays; a program follows pointers. A structure is written when it is read, from the
arrays as they are at that moment, so the list can be walked and ``chunk->va_block`` is who holds the
chunk now. Names and meaning: open-gpu-kernel-modules 575.57.08, uvm_pmm_gpu.h, uvm_va_block.h,
uvm_perf_prefetch.h.
"""

from __future__ import annotations

import numpy as np

from uvmsim.bpf.places import (
    BASE,
    BLOCK_BYTES,
    BLOCKS,
    CHUNKS,
    LISTS,
    OWNERS,
    PAGE_BYTES,
    TREE,
    VA_BASE,
)
from uvmsim.bpf.state import BLOCK as BLOCK_OF_TREE
from uvmsim.bpf.state import START
from uvmsim.bpf.words import get_u8, put_u8, put_u16, put_u32, put_u64

FIELDS = (
    "tree.leaf_count", "tree.level_count", "tree.offset", "tree.pages.bitmap",
    "chunk.address", "chunk.va_block_page_index", "chunk.log2_size", "chunk.state",
    "chunk.va_block", "chunk.list", "chunk.is_referenced",
    "block.start", "block.end", "block.managed_range", "block.va_range",
    "block.cpu.fault_authorized.first_pid", "block.hmm.va_space",
    "region.first", "region.outer",
)  # fmt: skip
(
    TREE_LEAVES, TREE_LEVELS, TREE_OFFSET, TREE_PAGES,
    CHUNK_ADDRESS, CHUNK_PAGE, CHUNK_LOG2, CHUNK_STATE, CHUNK_BLOCK, CHUNK_LIST, CHUNK_REFERENCED,
    BLOCK_START, BLOCK_END, BLOCK_MANAGED, BLOCK_RANGE, BLOCK_PID, BLOCK_HMM,
    REGION_FIRST, REGION_OUTER,
) = (np.int64(i) for i in range(len(FIELDS)))  # fmt: skip
OFFSET, SIZE, BIT, BITS = range(4)
PER_FIELD = 4
"""Columns of a field: bytes from the structure's start (-1: the object has no such field), its size;
of a bit field its first bit and its width."""
CHUNK_STEP, BLOCK_STEP, OWNER_STEP, RANGE_AT, SPACE_AT, PROCESSES, N_BLOCKS, N_CHUNKS = range(
    PER_FIELD * len(FIELDS), PER_FIELD * len(FIELDS) + 8
)
LAYOUT = PER_FIELD * len(FIELDS) + 8
"""Places after the fields: bytes from one chunk, block and process to the next; where in a process's
part its range and its VA space begin; numbers of processes, blocks and chunks."""
ALLOCATED = 4
"""UVM_PMM_GPU_CHUNK_STATE_ALLOCATED."""
LOG2_BLOCK = 21
_BLOCKS, _CHUNKS, _LISTS, _OWNERS = (np.uint64(i) for i in (BLOCKS, CHUNKS, LISTS, OWNERS))
_NONE, _UNUSED = np.int64(0), np.int64(16)
_32, _1, _0 = np.uint64(32), np.uint64(1), np.uint64(0)
_BASE = np.uint64(BASE)


def address(segment, offset):
    """As `places.address_of`, of registers."""
    return _BASE + (segment << _32) + np.uint64(offset)


def write(s, at, field, value):
    """Put a value into a field of the structure that begins at ``at`` in ``mem``."""
    f = PER_FIELD * field
    if s.layout[f + OFFSET] < 0:
        return
    at += s.layout[f + OFFSET]
    bits, size = s.layout[f + BITS], s.layout[f + SIZE]
    if bits > 0:
        for j in range(bits):
            bit = s.layout[f + BIT] + j
            put_bit(s, at + (bit >> 3), np.uint64(bit & 7), (value >> np.uint64(j)) & _1)
    elif size == 8:
        put_u64(s.mem, at, value)
    elif size == 4:
        put_u32(s.mem, at, value)
    elif size == 2:
        put_u16(s.mem, at, value)
    else:
        put_u8(s.mem, at, value)


def put_bit(s, at, bit, value):
    """One bit of a byte."""
    put_u8(s.mem, at, (get_u8(s.mem, at) & ~(_1 << bit)) | (value << bit))


def refresh(s, d, segment, offset):
    """Write the structure that ``offset`` of a live segment lies in."""
    if segment == CHUNKS:
        refresh_chunk(s, d, offset // s.layout[CHUNK_STEP])
    elif segment == BLOCKS:
        refresh_block(s, d, offset // s.layout[BLOCK_STEP])
    elif segment == LISTS:
        refresh_list(s, d)
    else:
        refresh_tree(s, d)


def link_address(s, chunk, end):
    """Address of a chunk's place in the used list; of the list's head for its end."""
    if chunk == end:
        return address(_LISTS, _NONE)
    place = max(s.layout[PER_FIELD * CHUNK_LIST + OFFSET], 0)
    return address(_CHUNKS, chunk * s.layout[CHUNK_STEP] + place)


def refresh_chunk(s, d, chunk):
    """A physical chunk of 2 MiB."""
    if chunk >= s.layout[N_CHUNKS]:
        return
    at = s.seg[CHUNKS, START] + chunk * s.layout[CHUNK_STEP]
    block, end = np.int64(d.block_of[chunk]), np.int64(len(d.next) - 1)
    write(s, at, CHUNK_ADDRESS, np.uint64(chunk * BLOCK_BYTES))
    write(s, at, CHUNK_LOG2, np.uint64(LOG2_BLOCK))
    write(s, at, CHUNK_STATE, np.uint64(ALLOCATED if block >= 0 else 1))
    held = address(_BLOCKS, block * s.layout[BLOCK_STEP]) if block >= 0 else _0
    write(s, at, CHUNK_BLOCK, held)
    place = s.layout[PER_FIELD * CHUNK_LIST + OFFSET]
    if place >= 0:
        own = link_address(s, np.int64(chunk), end)
        after = link_address(s, np.int64(d.next[chunk]), end) if block >= 0 else own
        before = link_address(s, np.int64(d.prev[chunk]), end) if block >= 0 else own
        put_u64(s.mem, at + place, after)
        put_u64(s.mem, at + place + 8, before)


def refresh_block(s, d, block):
    """A VA block; ``end`` is its last byte."""
    if block >= s.layout[N_BLOCKS]:
        return
    at = s.seg[BLOCKS, START] + block * s.layout[BLOCK_STEP]
    start = np.int64(VA_BASE + block * BLOCK_BYTES)
    write(s, at, BLOCK_START, np.uint64(start))
    write(s, at, BLOCK_END, np.uint64(start + np.int64(d.n_pages[block]) * PAGE_BYTES - 1))
    process = np.int64(d.tenant_of[block])
    owner = process * s.layout[OWNER_STEP]
    write(s, at, BLOCK_MANAGED, address(_OWNERS, owner + s.layout[RANGE_AT]))
    write(s, at, BLOCK_RANGE, address(_OWNERS, owner + s.layout[RANGE_AT]))
    write(s, at, BLOCK_HMM, address(_OWNERS, owner + s.layout[SPACE_AT]))
    write(s, at, BLOCK_PID, np.uint64(s.layout[PROCESSES] + process))


def refresh_list(s, d):
    """Heads of the used list, at 0, and of the unused one, at 16, which is empty."""
    at, end = s.seg[LISTS, START], np.int64(len(d.next) - 1)
    put_u64(s.mem, at, link_address(s, np.int64(d.next[end]), end))
    put_u64(s.mem, at + 8, link_address(s, np.int64(d.prev[end]), end))
    put_u64(s.mem, at + 16, address(_LISTS, _UNUSED))
    put_u64(s.mem, at + 24, address(_LISTS, _UNUSED))


def refresh_tree(s, d):
    """The bitmap tree of the block that is served: its leaves are pages resident or faulted."""
    at = s.seg[TREE, START]
    leaves = np.int64(512)
    if 0 <= s.n[BLOCK_OF_TREE] < s.layout[N_BLOCKS]:
        leaves = np.int64(d.n_pages[s.n[BLOCK_OF_TREE]])
    levels = 1
    while (1 << (levels - 1)) < leaves:
        levels += 1
    write(s, at, TREE_LEAVES, np.uint64(leaves))
    write(s, at, TREE_LEVELS, np.uint64(levels))
    place = s.layout[PER_FIELD * TREE_PAGES + OFFSET]
    if place >= 0:
        for w in range(len(d.accessed)):
            put_u64(s.mem, at + place + 8 * w, d.accessed[w])
