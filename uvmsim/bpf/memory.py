"""Memory of a program: addresses, bounds, loads and stores.

An address is ``BASE`` + (segment << 32) + offset, which looks like a kernel pointer. Every access that
is not a fixed place on the stack goes through `place`, which alone decides what is within bounds.
Segments `FIRST_LIVE` to `LAST_LIVE` are structures of the driver, brought up to
date by `refresh` when they are read. A load of an address that holds nothing gives 0, as the kernel's
loads through BTF pointers do (PROBE_MEM, Documentation/bpf/kfuncs.rst); one beyond the end of the
program's own memory is a fault, and so is every store outside it.
"""

from __future__ import annotations

import numpy as np

from uvmsim.bpf.live import refresh
from uvmsim.bpf.places import (
    BASE,
    FIRST_LIVE,
    LAST_LIVE,
    LAST_OF_KERNEL,
    STACK,
)
from uvmsim.bpf.state import (
    BAD_ACCESS,
    BAD_STORE,
    BUDGET,
    FAULT,
    FAULT_ADDRESS,
    FAULT_AT,
    MISSED,
    NO_BUDGET,
    READABLE,
    START,
    WRITABLE,
)
from uvmsim.bpf.words import get_u8, get_u16, get_u32, get_u64, put_u8, put_u16, put_u32, put_u64

_BASE, _LOW, _32 = np.uint64(BASE), np.uint64(0xFFFFFFFF), np.uint64(32)
_ZERO = np.uint64(0)
_1, _2, _4, _8 = (np.int64(n) for n in (1, 2, 4, 8))
_READ, _WRITE = np.int64(READABLE), np.int64(WRITABLE)


class BpfFault(Exception):
    """A program did what the verifier would not have let it load with; `State.n` says where."""


def fail(s, kind, address, pc):
    """Stop the run."""
    s.n[FAULT], s.n[FAULT_AT], s.n[FAULT_ADDRESS] = kind, np.int64(pc), np.int64(address)
    raise BpfFault("a program left its bounds")


def spend(s, pc):
    """One step back, or one more call of a callback."""
    s.n[BUDGET] -= 1
    if s.n[BUDGET] < 0:
        fail(s, NO_BUDGET, _ZERO, pc)


def segment_of(address):
    """Number of the segment; anything for an address without one."""
    return (address - _BASE) >> _32


def offset_of(address):
    """Bytes from the segment's start."""
    return np.int64((address - _BASE) & _LOW)


def place(s, address, size, column):
    """Where ``size`` bytes at an address lie in ``mem``; -1: not all in one segment."""
    segment = segment_of(address)
    if segment >= np.uint64(len(s.seg)):
        return np.int64(-1)
    offset = offset_of(address)
    if offset + size > s.seg[np.int64(segment), column]:
        return np.int64(-1)
    return s.seg[np.int64(segment), START] + offset


def readable(s, d, address, size, pc):
    """Where to read; -1: nothing is there, which reads as 0."""
    at = place(s, address, size, _READ)
    segment = segment_of(address)
    if at >= 0:
        if segment - np.uint64(FIRST_LIVE) <= np.uint64(LAST_LIVE - FIRST_LIVE):
            refresh(s, d, np.int64(segment), offset_of(address))
        return at
    own = segment < np.uint64(len(s.seg)) and s.seg[np.int64(segment), READABLE] > 0
    if own and (segment < np.uint64(FIRST_LIVE) or segment > np.uint64(LAST_OF_KERNEL)):
        fail(s, BAD_ACCESS, address, pc)
    s.n[MISSED] += 1
    return at


def writable_at(s, address, size, pc):
    """Where to write."""
    at = place(s, address, size, _WRITE)
    if at < 0:
        fail(s, BAD_STORE, address, pc)
    return at


# ---- what translated code calls -----------------------------------------------------------------


def load_u8(s, d, address, pc):
    at = readable(s, d, address, _1, pc)
    return get_u8(s.mem, at) if at >= 0 else _ZERO


def load_u16(s, d, address, pc):
    at = readable(s, d, address, _2, pc)
    return get_u16(s.mem, at) if at >= 0 else _ZERO


def load_u32(s, d, address, pc):
    at = readable(s, d, address, _4, pc)
    return get_u32(s.mem, at) if at >= 0 else _ZERO


def load_u64(s, d, address, pc):
    at = readable(s, d, address, _8, pc)
    return get_u64(s.mem, at) if at >= 0 else _ZERO


def store_u8(s, address, value, pc):
    put_u8(s.mem, writable_at(s, address, _1, pc), value)


def store_u16(s, address, value, pc):
    put_u16(s.mem, writable_at(s, address, _2, pc), value)


def store_u32(s, address, value, pc):
    put_u32(s.mem, writable_at(s, address, _4, pc), value)


def store_u64(s, address, value, pc):
    put_u64(s.mem, writable_at(s, address, _8, pc), value)


# A fixed place below r10, which the translator has checked against the frame.


def frame_at(s, address):
    """Where a place of the stack lies."""
    return s.seg[STACK, START] + offset_of(address)


def frame_load_u8(s, address):
    return get_u8(s.mem, frame_at(s, address))


def frame_load_u16(s, address):
    return get_u16(s.mem, frame_at(s, address))


def frame_load_u32(s, address):
    return get_u32(s.mem, frame_at(s, address))


def frame_load_u64(s, address):
    return get_u64(s.mem, frame_at(s, address))


def frame_store_u8(s, address, value):
    put_u8(s.mem, frame_at(s, address), value)


def frame_store_u16(s, address, value):
    put_u16(s.mem, frame_at(s, address), value)


def frame_store_u32(s, address, value):
    put_u32(s.mem, frame_at(s, address), value)


def frame_store_u64(s, address, value):
    put_u64(s.mem, frame_at(s, address), value)


def atomic_u32(s, d, address, operation, value, expected, pc):
    """As `atomic_u64`, of 4 bytes."""
    at = writable_at(s, address, _4, pc)
    old = get_u32(s.mem, at)
    put_u32(s.mem, at, changed(operation, old, value, expected & _LOW))
    return old


def atomic_u64(s, d, address, operation, value, expected, pc):
    """An atomic operation (`uvmsim.bpf.instructions.ATOMICS` without its fetch bit, or xchg, cmpxchg);
    returns what was there."""
    at = writable_at(s, address, _8, pc)
    old = get_u64(s.mem, at)
    put_u64(s.mem, at, changed(operation, old, value, expected))
    return old


def changed(operation, old, value, expected):
    """What an atomic operation leaves."""
    if operation == np.uint64(0x00):
        return old + value
    if operation == np.uint64(0x40):
        return old | value
    if operation == np.uint64(0x50):
        return old & value
    if operation == np.uint64(0xA0):
        return old ^ value
    if operation == np.uint64(0xE1):
        return value
    return value if old == expected else old
