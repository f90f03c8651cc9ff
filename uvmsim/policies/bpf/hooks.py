"""The driver's hooks, which lay out what a program gets, call it, and take what it answers.

These are templates: `bound` puts the functions of an object in the place of ``program`` and the
probes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import Any

import numpy as np

from uvmsim.bpf.helpers import key_address
from uvmsim.bpf.live import (
    BLOCK_STEP,
    CHUNK_STEP,
    OFFSET,
    PER_FIELD,
    REGION_FIRST,
    REGION_OUTER,
    SIZE,
    address,
    write,
)
from uvmsim.bpf.maps import element_address, element_within
from uvmsim.bpf.places import (
    BLOCKS,
    CHUNKS,
    CONTEXT,
    FRAME_BYTES,
    LISTS,
    MAPS,
    REGIONS,
    STACK,
    TREE,
    address_of,
)
from uvmsim.bpf.state import (
    BATCH,
    BLOCK,
    BUDGET,
    NOW_NS,
    QUEUED,
    RING_NEXT,
    RING_OPEN,
    START,
    W_ADDRESS,
    W_CALLBACK,
    W_PENDING,
    WORK_ITEMS,
)
from uvmsim.bpf.words import get_u8, get_u16, get_u32, put_u64
from uvmsim.policies.pages import base
from uvmsim.policies.pages.base import DEFAULT, FIRST, MAX_FIRST, MAX_OUTER, OUTER, set_region

LIMIT = 1 << 23
"""Steps back, and calls of callbacks, in one call of a hook: BPF_MAX_LOOPS. The verifier lets no loop
run a million instructions but through bpf_loop."""
MOST, RESULT, SUBREGION = (np.int64(n) for n in (0, 64, 128))
"""Places of the regions."""
REGISTERS_AT = 64
DI, SI, DX, CX, R8, R9 = (np.int64(n) for n in (112, 104, 96, 88, 72, 64))
"""Places in x86-64's struct pt_regs (arch/x86/include/asm/ptrace.h)."""
FRAME_TOP = np.uint64(address_of(STACK, FRAME_BYTES))
ARGUMENTS = np.uint64(address_of(CONTEXT))
REGISTERS = np.uint64(address_of(CONTEXT, REGISTERS_AT))
PMM, USED_LIST, UNUSED_LIST = (np.int64(n) for n in (64, 0, 16))
"""Places among the heads of lists."""
_0, HEAD = np.uint64(0), np.int64(0)
A0, A1, A2, A3, A4 = (np.int64(n) for n in range(5))
TREES, CHUNK, LIST, BLOCK_SEGMENT, REGION, MAP = (
    np.uint64(n) for n in (TREE, CHUNKS, LISTS, BLOCKS, REGIONS, MAPS)
)

NOW, FAULT_BATCH = base.NOW_NS, base.BATCH


def program(s: Any, d: Any, r1: Any, r10: Any) -> Any:
    """The object's function for this hook."""
    return _0


def probe(s: Any, d: Any, r1: Any, r10: Any) -> Any:
    """Its kprobes on the driver's function that calls the hook."""
    return _0


def hint_probe(s: Any, d: Any, r1: Any, r10: Any) -> Any:
    """Its kprobes on uvm_perf_prefetch_get_hint_va_block."""
    return _0


def work(s: Any, d: Any, number: Any, r1: Any, r2: Any, r3: Any, r10: Any) -> Any:
    """The callbacks of its work items."""
    return _0


def begin(s, d):
    """A call of the object."""
    s.n[BUDGET], s.n[NOW_NS] = LIMIT, d.n[NOW]
    s.n[RING_OPEN] = s.n[RING_NEXT] = 0


def argument(s, i, value):
    """Argument ``i`` of a struct_ops program."""
    put_u64(s.mem, s.seg[CONTEXT, START] + 8 * i, value)


def register(s, at, value):
    """A register of a kprobe's struct pt_regs."""
    put_u64(s.mem, s.seg[CONTEXT, START] + REGISTERS_AT + at, value)


def put_region(s, slot, first, outer):
    """Fill a region."""
    at = s.seg[REGIONS, START] + slot
    write(s, at, REGION_FIRST, np.uint64(first))
    write(s, at, REGION_OUTER, np.uint64(outer))


def region_field(s, slot, field):
    """A bound of a region."""
    f = PER_FIELD * field
    at = s.seg[REGIONS, START] + slot + s.layout[f + OFFSET]
    size = s.layout[f + SIZE]
    if size == 2:
        return np.int64(get_u16(s.mem, at))
    return np.int64(get_u32(s.mem, at)) if size > 2 else np.int64(get_u8(s.mem, at))


def take_region(s, region):
    """What the program answered, as `set_region` clamps it."""
    first, outer = region_field(s, RESULT, REGION_FIRST), region_field(s, RESULT, REGION_OUTER)
    if first != region[FIRST] or outer != region[OUTER]:
        set_region(region, first, outer)


def page_prefetch(s, d, block, page, region):
    begin(s, d)
    if s.n[BATCH] != d.n[FAULT_BATCH] or s.n[BLOCK] != block:
        s.n[BATCH], s.n[BLOCK] = d.n[FAULT_BATCH], block
        register(s, DI, address(BLOCK_SEGMENT, block * s.layout[BLOCK_STEP]))
        for at in (SI, DX, CX, R8, R9):
            register(s, at, _0)
        hint_probe(s, d, REGISTERS, FRAME_TOP)
    put_region(s, MOST, region[MAX_FIRST], region[MAX_OUTER])
    put_region(s, RESULT, region[FIRST], region[OUTER])
    index, tree = np.uint64(page), address(TREES, HEAD)
    most, result = address(REGION, MOST), address(REGION, RESULT)
    register(s, DI, index)
    register(s, SI, tree)
    register(s, DX, most)
    register(s, CX, result)
    probe(s, d, REGISTERS, FRAME_TOP)
    argument(s, A0, index)
    argument(s, A1, tree)
    argument(s, A2, most)
    argument(s, A3, result)
    answer = np.int64(np.int32(program(s, d, ARGUMENTS, FRAME_TOP) & np.uint64(0xFFFFFFFF)))
    take_region(s, region)
    return answer


def page_prefetch_iter(s, d, block, first, outer, counter, region):
    begin(s, d)
    put_region(s, MOST, region[MAX_FIRST], region[MAX_OUTER])
    put_region(s, RESULT, region[FIRST], region[OUTER])
    put_region(s, SUBREGION, first, outer)
    argument(s, A0, address(TREES, HEAD))
    argument(s, A1, address(REGION, MOST))
    argument(s, A2, address(REGION, SUBREGION))
    argument(s, A3, np.uint64(counter))
    argument(s, A4, address(REGION, RESULT))
    program(s, d, ARGUMENTS, FRAME_TOP)
    take_region(s, region)
    return 0


def on_chunk(s, d, first, second, third):
    """Three arguments, for the kprobes and for the program."""
    begin(s, d)
    register(s, DI, first)
    register(s, SI, second)
    register(s, DX, third)
    argument(s, A0, first)
    argument(s, A1, second)
    argument(s, A2, third)


def block_activate(s, d, chunk):
    place = address(CHUNK, chunk * s.layout[CHUNK_STEP])
    on_chunk(s, d, address(LIST, PMM), place, address(LIST, USED_LIST))
    probe(s, d, REGISTERS, FRAME_TOP)
    program(s, d, ARGUMENTS, FRAME_TOP)
    return DEFAULT


def block_access(s, d, chunk):
    place = address(CHUNK, chunk * s.layout[CHUNK_STEP])
    on_chunk(s, d, address(LIST, PMM), place, address(LIST, USED_LIST))
    probe(s, d, REGISTERS, FRAME_TOP)
    answer = program(s, d, ARGUMENTS, FRAME_TOP)
    return np.int64(np.int32(answer & np.uint64(0xFFFFFFFF)))


def evict_prepare(s, d):
    used, unused = address(LIST, USED_LIST), address(LIST, UNUSED_LIST)
    on_chunk(s, d, address(LIST, PMM), used, unused)
    probe(s, d, REGISTERS, FRAME_TOP)
    program(s, d, ARGUMENTS, FRAME_TOP)
    return 0


def after_batch(s, d):
    """Work items in the order in which they were queued; what they queue runs after the next batch."""
    last = s.n[QUEUED]
    s.n[QUEUED] = 0
    if last == 0:
        return 0
    for i in range(WORK_ITEMS):
        s.work[i, W_PENDING] = -s.work[i, W_PENDING]
    for turn in range(1, last + 1):
        for i in range(WORK_ITEMS):
            if s.work[i, W_PENDING] == -turn:
                s.work[i, W_PENDING] = 0
                m, element = element_within(s, np.uint64(s.work[i, W_ADDRESS]))
                if m >= 0:
                    begin(s, d)
                    value, key = element_address(s, m, element), key_address(s, m, element)
                    owner = address(MAP, 64 * m)
                    work(s, d, s.work[i, W_CALLBACK], owner, key, value, FRAME_TOP)
    return 0


GROUPS = ("page_prefetch", "page_prefetch_iter", "block_activate", "block_access", "evict_prepare")
TEMPLATES = {
    f.__name__: f
    for f in (
        page_prefetch, page_prefetch_iter, block_activate, block_access, evict_prepare, after_batch,
    )
}  # fmt: skip


def bound(name: str, functions: Mapping[str, FunctionType], callbacks: FunctionType) -> Any:
    """The hook ``name`` with an object's functions in it. ``functions``: the programs under the hooks'
    names, kprobes under ``probe_NAME`` and ``probe_hint``."""
    template = TEMPLATES[name]
    scope = dict(template.__globals__)
    scope["program"] = functions.get(name, program)
    scope["probe"] = functions.get(f"probe_{name}", probe)
    scope["hint_probe"] = functions.get("probe_hint", hint_probe)
    scope["work"] = callbacks
    made = FunctionType(template.__code__, scope, template.__name__)
    made.__module__ = template.__module__
    made.__qualname__ = template.__qualname__
    return made
