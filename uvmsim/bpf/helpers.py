"""Helpers, under their names without ``bpf_`` (include/uapi/linux/bpf.h). A function here is a helper
that runs: `HELPERS_THAT_RUN` finds them."""

from __future__ import annotations

import numpy as np

from uvmsim.bpf import maps
from uvmsim.bpf.memory import writable_at
from uvmsim.bpf.names import HELPERS
from uvmsim.bpf.places import BASE, KEYS, RECORDS
from uvmsim.bpf.state import (
    ENTRIES,
    NOW_NS,
    PRINTED,
    QUEUED,
    READABLE,
    RING_NEXT,
    RING_OPEN,
    SEED,
    SEGMENT,
    SENT,
    SENT_BYTES,
    START,
    STRIDE,
    UNDONE,
    W_ADDRESS,
    W_CALLBACK,
    W_MAP,
    W_PENDING,
    WORK_ITEMS,
)
from uvmsim.bpf.words import get_u8, put_u8, put_u64

_0, _1, _8, _32 = np.uint64(0), np.uint64(1), np.uint64(8), np.uint64(32)
_BYTE = np.int64(1)
FAULTED, NO_ROOM, NONE, NOT_VALID = (np.uint64(2**64 - n) for n in (14, 12, 2, 22))
"""-EFAULT, -ENOMEM, -ENOENT, -EINVAL."""
BOOT_NS = 3_600 * 10**9
"""The machine has been up for an hour when a run begins: a stamp of 0 is long ago."""
TICK_NS = 4_000_000
"""Of jiffies: CONFIG_HZ=250."""
WORKER = 500
"""Process and thread of the driver's bottom half, which is who runs the hooks."""
COMMAND = b"UVM GPU1 BH\0\0\0\0\0"
COMMAND_WORDS = tuple(np.uint64(int.from_bytes(COMMAND[i : i + 8], "little")) for i in (0, 8))
_FIRST, _SECOND = COMMAND_WORDS
_STEP, _MIX1, _MIX2 = (
    np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def blank(s, to, n):
    for j in range(n):
        put_u8(s.mem, to + j, _0)


def probe_read_kernel(s, d, r1, r2, r3, r4, r5, pc):
    n = np.int64(r2 & np.uint64(0xFFFFFFFF))
    if n == 0:
        return _0
    to = writable_at(s, r1, n, pc)
    source = maps.readable_or_none(s, d, r3, n, pc)
    if source < 0:
        blank(s, to, n)
        return FAULTED
    maps.copy(s, to, source, n)
    return _0


def probe_read(s, d, r1, r2, r3, r4, r5, pc):
    return probe_read_kernel(s, d, r1, r2, r3, r4, r5, pc)


def probe_read_user(s, d, r1, r2, r3, r4, r5, pc):
    """Memory of the application is not simulated: nothing is there."""
    n = np.int64(r2 & np.uint64(0xFFFFFFFF))
    if n > 0:
        blank(s, writable_at(s, r1, n, pc), n)
    return FAULTED


def probe_read_kernel_str(s, d, r1, r2, r3, r4, r5, pc):
    n = np.int64(r2 & np.uint64(0xFFFFFFFF))
    if n == 0:
        return _0
    to = writable_at(s, r1, n, pc)
    j = 0
    while j < n:
        source = maps.readable_or_none(s, d, r3 + np.uint64(j), _BYTE, pc)
        if source < 0:
            blank(s, to, n)
            return FAULTED
        byte = get_u8(s.mem, source)
        put_u8(s.mem, to + j, byte)
        j += 1
        if byte == _0:
            return np.uint64(j)
    put_u8(s.mem, to + n - 1, _0)
    return np.uint64(n)


def probe_read_str(s, d, r1, r2, r3, r4, r5, pc):
    return probe_read_kernel_str(s, d, r1, r2, r3, r4, r5, pc)


def probe_read_user_str(s, d, r1, r2, r3, r4, r5, pc):
    return probe_read_user(s, d, r1, r2, r3, r4, r5, pc)


def ktime_get_ns(s, d, r1, r2, r3, r4, r5, pc):
    return np.uint64(BOOT_NS + s.n[NOW_NS])


def ktime_get_boot_ns(s, d, r1, r2, r3, r4, r5, pc):
    return np.uint64(BOOT_NS + s.n[NOW_NS])


def ktime_get_coarse_ns(s, d, r1, r2, r3, r4, r5, pc):
    return np.uint64((BOOT_NS + s.n[NOW_NS]) // TICK_NS * TICK_NS)


def ktime_get_tai_ns(s, d, r1, r2, r3, r4, r5, pc):
    return np.uint64(BOOT_NS + s.n[NOW_NS])


def jiffies64(s, d, r1, r2, r3, r4, r5, pc):
    return np.uint64((BOOT_NS + s.n[NOW_NS]) // TICK_NS)


def trace_printk(s, d, r1, r2, r3, r4, r5, pc):
    """Counted; the text goes nowhere."""
    s.n[PRINTED] += 1
    return _1


def trace_vprintk(s, d, r1, r2, r3, r4, r5, pc):
    s.n[PRINTED] += 1
    return _1


def get_prandom_u32(s, d, r1, r2, r3, r4, r5, pc):
    """SplitMix64 (Steele, Lea, Flood 2014), from the run's seed: a run is repeatable."""
    z = np.uint64(s.n[SEED]) + _STEP
    s.n[SEED] = np.int64(z)
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return (z ^ (z >> np.uint64(31))) >> _32


def get_smp_processor_id(s, d, r1, r2, r3, r4, r5, pc):
    """One CPU runs the driver's handler."""
    return _0


def get_numa_node_id(s, d, r1, r2, r3, r4, r5, pc):
    return _0


def get_current_pid_tgid(s, d, r1, r2, r3, r4, r5, pc):
    return np.uint64(WORKER << 32 | WORKER)


def get_current_uid_gid(s, d, r1, r2, r3, r4, r5, pc):
    return _0


def get_current_comm(s, d, r1, r2, r3, r4, r5, pc):
    n = np.int64(r2 & np.uint64(0xFFFFFFFF))
    if n == 0:
        return NOT_VALID
    to = writable_at(s, r1, n, pc)
    for j in range(n):
        word = _FIRST if j < 8 else _SECOND if j < 16 else _0
        put_u8(s.mem, to + j, (word >> np.uint64(8 * (j & 7))) & np.uint64(0xFF))
    put_u8(s.mem, to + n - 1, _0)
    return _0


def spin_lock(s, d, r1, r2, r3, r4, r5, pc):
    return _0


def spin_unlock(s, d, r1, r2, r3, r4, r5, pc):
    return _0


# ---- ring buffers: a sink, what is sent is counted ----------------------------------------------


def ringbuf_reserve(s, d, r1, r2, r3, r4, r5, pc):
    m = maps.map_of(s, r1, pc)
    n = np.int64(r2 & np.uint64(0xFFFFFFFF))
    room = s.seg[RECORDS, READABLE]
    if n > s.maps[m, ENTRIES] or s.n[RING_NEXT] + n > room or r2 > np.uint64(room):
        return _0
    at = s.n[RING_NEXT]
    s.n[RING_NEXT] = at + ((n + 7) // 8) * 8
    s.n[RING_OPEN] += 1
    s.n[SENT_BYTES] += n
    return np.uint64(BASE) + (np.uint64(RECORDS) << _32) + np.uint64(at)


def close_record(s):
    s.n[RING_OPEN] -= 1
    if s.n[RING_OPEN] <= 0:
        s.n[RING_OPEN] = s.n[RING_NEXT] = 0


def ringbuf_submit(s, d, r1, r2, r3, r4, r5, pc):
    s.n[SENT] += 1
    close_record(s)
    return _0


def ringbuf_discard(s, d, r1, r2, r3, r4, r5, pc):
    close_record(s)
    return _0


def ringbuf_output(s, d, r1, r2, r3, r4, r5, pc):
    n = np.int64(r3 & np.uint64(0xFFFFFFFF))
    if n > 0:
        maps.given(s, d, r2, n, pc)
    s.n[SENT] += 1
    s.n[SENT_BYTES] += n
    return _0


def ringbuf_query(s, d, r1, r2, r3, r4, r5, pc):
    """The reader is never behind: nothing is in the buffer but its size (BPF_RB_RING_SIZE, 1)."""
    return np.uint64(s.maps[maps.map_of(s, r1, pc), ENTRIES]) if r2 == _1 else _0


# ---- work queues: callbacks run after the fault batch -------------------------------------------


def work_item(s, address):
    """Row of a bpf_wq, a new one if need be; -1 where there is no room."""
    for i in range(WORK_ITEMS):
        if s.work[i, W_ADDRESS] == np.int64(address):
            return i
        if s.work[i, W_ADDRESS] == 0:
            s.work[i, W_ADDRESS] = np.int64(address)
            s.work[i, W_CALLBACK] = s.work[i, W_MAP] = -1
            return i
    s.n[UNDONE] += 1
    return -1


def bpf_wq_init(s, d, r1, r2, r3, r4, r5, pc):
    i = work_item(s, r1)
    if i < 0:
        return NO_ROOM
    s.work[i, W_MAP] = maps.map_of(s, r2, pc)
    return _0


def bpf_wq_set_callback_impl(s, d, r1, r2, r3, r4, r5, pc):
    """Which function the address in r2 is, the translator has made sure of."""
    i = work_item(s, r1)
    if i < 0:
        return NO_ROOM
    s.work[i, W_CALLBACK] = np.int64(r2 & np.uint64(0xFFFFFFFF)) // 8
    return _0


def bpf_wq_start(s, d, r1, r2, r3, r4, r5, pc):
    """Queue it, unless it is queued: what it works on is then what its map holds when it runs."""
    i = work_item(s, r1)
    if i < 0:
        return NO_ROOM
    if s.work[i, W_CALLBACK] < 0 or s.work[i, W_MAP] < 0:
        return NOT_VALID
    if s.work[i, W_PENDING] == 0:
        s.n[QUEUED] += 1
        s.work[i, W_PENDING] = s.n[QUEUED]
    return _0


def put_index(s, i):
    """An array's index where a callback finds its key; its address."""
    put_u64(s.mem, s.seg[KEYS, START], np.uint64(i))
    return np.uint64(BASE) + (np.uint64(KEYS) << _32)


def key_address(s, m, i):
    """Address of an element's key."""
    if not maps.is_hash(s, m):
        return put_index(s, i)
    at = np.uint64(s.maps[m, SEGMENT]) << _32
    return np.uint64(BASE) + at + np.uint64(i * s.maps[m, STRIDE])


map_lookup_elem = maps.map_lookup_elem
map_lookup_percpu_elem = maps.map_lookup_percpu_elem
map_update_elem = maps.map_update_elem
map_delete_elem = maps.map_delete_elem

HELPERS_THAT_RUN = {n: globals()[name] for n, name in HELPERS.items() if name in globals()}
"""By number; beside these bpf_loop, which the translator makes."""
WORK_QUEUES = {
    f.__name__: f for f in (bpf_wq_init, bpf_wq_set_callback_impl, bpf_wq_start)
}  # fmt: skip
"""Kernel functions of work queues, by name."""
