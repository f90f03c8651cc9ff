"""Where things lie for a program: addresses, and segments by number.

An address is ``BASE`` + (segment << 32) + offset, which looks like a kernel pointer.
"""

from __future__ import annotations

BASE = 0xFFFF_8880_0000_0000
NOTHING, STACK, CONTEXT, RECORDS, KEYS = range(5)
"""Of the null pointer, frames, arguments, ring-buffer records, keys given to callbacks."""
TREE, CHUNKS, LISTS, BLOCKS, OWNERS, REGIONS = range(5, 11)
"""The driver's structures: the bitmap tree, physical chunks, heads of lists, VA blocks, their
processes, regions."""
FIRST_LIVE, LAST_LIVE, LAST_OF_KERNEL = TREE, BLOCKS, REGIONS
"""Those up to `BLOCKS` are brought up to date when they are read (`uvmsim.bpf.live`)."""
MAPS, FUNCTIONS = 0x7000, 0x7001
"""Segments that hold nothing: their addresses stand for maps (64 bytes apart) and functions (8)."""
FRAME_BYTES, FRAMES = 512, 8
"""MAX_BPF_STACK, MAX_CALL_FRAMES (include/linux/bpf_verifier.h)."""
VA_BASE, BLOCK_BYTES, PAGE_BYTES = 0x7000_0000_0000, 2 << 20, 4096
"""Virtual address of the first VA block; the others follow without gaps, all processes in one space."""
FIRST_PROCESS = 1000
"""Process number (tgid) of the first process; the others follow."""


def address_of(segment: int, offset: int = 0) -> int:
    """The address of a place in a segment."""
    return BASE + (segment << 32) + offset
