"""Maps while a program runs: look-up, update, removal (kernel/bpf/arraymap.c, hashtab.c).

One CPU runs the driver's handler, so a per-CPU map has one value. An LRU map drops the entry that was
not used for longest; the kernel's does so nearly (Documentation/bpf/map_hash.rst, several lists, one
bit). Keys and values lie in the map's segment, everything that says which is which beside it, where no
program can reach it.
"""

from __future__ import annotations

import numpy as np

from uvmsim.bpf import names
from uvmsim.bpf.memory import fail, offset_of, place, readable, segment_of
from uvmsim.bpf.places import MAPS, address_of
from uvmsim.bpf.state import (
    BAD_ACCESS,
    BAD_MAP,
    BUCKETS,
    CHAIN,
    DENIED,
    ENTRIES,
    FREE,
    KEY,
    KIND,
    N_BUCKETS,
    NEWER,
    NEWEST,
    OLDER,
    OLDEST,
    READABLE,
    SEGMENT,
    START,
    STRIDE,
    USED,
    VALUE,
    VALUE_AT,
)
from uvmsim.bpf.words import get_u8, get_u32, put_u8

BASE_OF_SEGMENTS = np.uint64(address_of(0))
HASH, LRU_HASH = names.HASH, names.LRU_HASH
PERCPU_HASH, LRU_PERCPU_HASH, RINGBUF = names.PERCPU_HASH, names.LRU_PERCPU_HASH, names.RINGBUF
NO_ENTRY, TOO_BIG, INVALID, EXISTS = (np.uint64(2**64 - n) for n in (2, 7, 22, 17))
"""-ENOENT, -E2BIG, -EINVAL, -EEXIST."""
_0, _32 = np.uint64(0), np.uint64(32)
_4, _READ = np.int64(4), np.int64(READABLE)
_SEED, _PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)
NO_EXIST, EXIST, LOCK = np.uint64(1), np.uint64(2), np.uint64(4)


def map_of(s, address, pc):
    """Number of the map that a register names."""
    number = offset_of(address) // 64
    if segment_of(address) != np.uint64(MAPS) or number >= len(s.maps) or offset_of(address) % 64:
        fail(s, BAD_MAP, address, pc)
    return number


def readable_or_none(s, d, address, size, pc):
    """As `readable`; -1 also beyond the end of the program's own memory, as probe_read has it."""
    if place(s, address, size, _READ) < 0:
        return np.int64(-1)
    return readable(s, d, address, size, pc)


def given(s, d, address, size, pc):
    """Where a helper's argument lies, which must be memory."""
    at = readable(s, d, address, size, pc)
    if at < 0:
        fail(s, BAD_ACCESS, address, pc)
    return at


def is_hash(s, m):
    kind = s.maps[m, KIND]
    return kind in (HASH, LRU_HASH, PERCPU_HASH, LRU_PERCPU_HASH)


def is_lru(s, m):
    return s.maps[m, KIND] == LRU_HASH or s.maps[m, KIND] == LRU_PERCPU_HASH


def element_address(s, m, i):
    """Address of the value of an element."""
    offset = i * s.maps[m, STRIDE] + s.maps[m, VALUE_AT]
    return BASE_OF_SEGMENTS + (np.uint64(s.maps[m, SEGMENT]) << _32) + np.uint64(offset)


def element_at(s, m, i):
    """Where an element begins in ``mem``: its key, of a hash."""
    return s.seg[s.maps[m, SEGMENT], START] + i * s.maps[m, STRIDE]


def copy(s, to, source, n):
    """Bytes within ``mem``."""
    for j in range(n):
        put_u8(s.mem, to + j, get_u8(s.mem, source + j))


def bucket_of(s, m, key):
    """Place in ``table`` of the bucket of the key that lies at ``key``."""
    h = _SEED
    for j in range(s.maps[m, KEY]):
        h = (h ^ get_u8(s.mem, key + j)) * _PRIME
    h ^= h >> _32
    return s.maps[m, BUCKETS] + (np.int64(h) & (s.maps[m, N_BUCKETS] - 1))


def find(s, m, key):
    """The element with a key, -1."""
    n = s.maps[m, KEY]
    i = np.int64(s.table[bucket_of(s, m, key)])
    while i >= 0:
        at = element_at(s, m, i)
        j = 0
        while j < n and get_u8(s.mem, at + j) == get_u8(s.mem, key + j):
            j += 1
        if j == n:
            return i
        i = np.int64(s.table[s.maps[m, CHAIN] + i])
    return np.int64(-1)


def unlink_use(s, m, i):
    """Take an element out of the order of use."""
    older, newer = s.maps[m, OLDER], s.maps[m, NEWER]
    before, after = s.table[older + i], s.table[newer + i]
    if before >= 0:
        s.table[newer + before] = after
    else:
        s.maps[m, OLDEST] = after
    if after >= 0:
        s.table[older + after] = before
    else:
        s.maps[m, NEWEST] = before


def push_use(s, m, i):
    """Make an element the one used last."""
    older, newer = s.maps[m, OLDER], s.maps[m, NEWER]
    last = s.maps[m, NEWEST]
    s.table[older + i], s.table[newer + i] = last, -1
    if last >= 0:
        s.table[newer + last] = i
    else:
        s.maps[m, OLDEST] = i
    s.maps[m, NEWEST] = i


def use(s, m, i):
    """An element of an LRU map was looked up or updated."""
    if s.maps[m, NEWEST] != i:
        unlink_use(s, m, i)
        push_use(s, m, i)


def remove(s, m, i):
    """Take an element out of its bucket; it is free then."""
    chain = s.maps[m, CHAIN]
    at = bucket_of(s, m, element_at(s, m, i))
    while s.table[at] != i:
        at = chain + np.int64(s.table[at])
    s.table[at] = s.table[chain + i]
    s.table[chain + i] = s.maps[m, FREE]
    s.maps[m, FREE] = i
    s.maps[m, USED] -= 1
    if is_lru(s, m):
        unlink_use(s, m, i)


def insert(s, m, key):
    """A free element with this key, -1 where there is none."""
    if s.maps[m, FREE] < 0 and is_lru(s, m):
        remove(s, m, np.int64(s.maps[m, OLDEST]))
    i = np.int64(s.maps[m, FREE])
    if i < 0:
        return i
    chain = s.maps[m, CHAIN]
    s.maps[m, FREE] = s.table[chain + i]
    copy(s, element_at(s, m, i), key, s.maps[m, KEY])
    at = bucket_of(s, m, key)
    s.table[chain + i] = s.table[at]
    s.table[at] = i
    s.maps[m, USED] += 1
    if is_lru(s, m):
        push_use(s, m, i)
    return i


def index_of(s, d, m, address, pc):
    """An array's index, which lies at an address; -1 for one that is too large."""
    i = np.int64(get_u32(s.mem, given(s, d, address, _4, pc)))
    return i if i < s.maps[m, ENTRIES] else np.int64(-1)


def lookup(s, d, m, address, pc):
    """The element that an address's key names, -1."""
    if s.maps[m, KIND] == RINGBUF:
        return np.int64(-1)
    if not is_hash(s, m):
        return index_of(s, d, m, address, pc)
    i = find(s, m, given(s, d, address, s.maps[m, KEY], pc))
    if i >= 0 and is_lru(s, m):
        use(s, m, i)
    return i


def map_lookup_elem(s, d, r1, r2, r3, r4, r5, pc):
    m = map_of(s, r1, pc)
    i = lookup(s, d, m, r2, pc)
    return element_address(s, m, i) if i >= 0 else _0


def map_lookup_percpu_elem(s, d, r1, r2, r3, r4, r5, pc):
    return map_lookup_elem(s, d, r1, r2, r3, r4, r5, pc) if r3 == _0 else _0


def map_update_elem(s, d, r1, r2, r3, r4, r5, pc):
    m = map_of(s, r1, pc)
    flags = r4 & ~LOCK
    if flags > EXIST or s.maps[m, KIND] == RINGBUF:
        return INVALID
    value = given(s, d, r3, s.maps[m, VALUE], pc)
    i = lookup(s, d, m, r2, pc)
    if not is_hash(s, m):
        if i < 0:
            return TOO_BIG
        if flags == NO_EXIST:
            return EXISTS
    else:
        if i >= 0 and flags == NO_EXIST:
            return EXISTS
        if i < 0 and flags == EXIST:
            return NO_ENTRY
        if i < 0:
            i = insert(s, m, given(s, d, r2, s.maps[m, KEY], pc))
            if i < 0:
                s.n[DENIED] += 1
                return TOO_BIG
    at = element_at(s, m, i) + s.maps[m, VALUE_AT]
    if at != value:
        copy(s, at, value, s.maps[m, VALUE])
    return _0


def map_delete_elem(s, d, r1, r2, r3, r4, r5, pc):
    m = map_of(s, r1, pc)
    if not is_hash(s, m):
        return INVALID
    i = lookup(s, d, m, r2, pc)
    if i < 0:
        return NO_ENTRY
    remove(s, m, i)
    return _0


def element_within(s, address):
    """The map and the element that an address lies in; -1 where it lies in none."""
    segment = np.int64(segment_of(address))
    for m in range(len(s.maps)):
        if s.maps[m, SEGMENT] == segment and offset_of(address) < s.seg[segment, READABLE]:
            return np.int64(m), offset_of(address) // s.maps[m, STRIDE]
    return np.int64(-1), np.int64(-1)
