"""Where the fields of the driver's structures lie in an object, and room for the structures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.errors import InputError
from uvmsim.bpf import live as v
from uvmsim.bpf.btf import Btf
from uvmsim.bpf.btf_ext import FIELD_OFFSET
from uvmsim.bpf.object import Object
from uvmsim.bpf.places import FIRST_PROCESS, OWNERS, address_of
from uvmsim.bpf.state import START, State

STRUCTURES = {
    "tree": ("uvm_perf_prefetch_bitmap_tree", "uvm_perf_prefetch_bitmap_tree_t"),
    "chunk": ("uvm_gpu_chunk_struct", "uvm_gpu_chunk_t"),
    "block": ("uvm_va_block_struct", "uvm_va_block_t"),
    "region": ("uvm_va_block_region_t", "uvm_va_block_region_struct"),
    "managed": ("uvm_va_range_managed_struct", "uvm_va_range_managed_t"),
    "range": ("uvm_va_range_struct", "uvm_va_range_t"),
    "space": ("uvm_va_space_struct", "uvm_va_space_t"),
    "mm": ("mm_struct",),
    "task": ("task_struct",),
}
"""Structures and the names they go by."""
DEFAULTS = {"region.first": (0, 2), "region.outer": (2, 2)}
"""Where an object does not say: kernel functions fill a region that a program never looks into."""
POINTERS = (
    ("managed", "va_range.va_space", "space"), ("range", "va_space", "space"),
    ("space", "va_space_mm.mm", "mm"), ("mm", "owner", "task"),
)  # fmt: skip
"""The way from a VA block to its process: field -> structure it points to."""
FILLED = {
    *v.FIELDS, *(f"{a}.{b}" for a, b, _ in POINTERS), "task.tgid", "task.pid", "list.next",
    "list.prev", "regs.di", "regs.si", "regs.dx", "regs.cx", "regs.r8", "regs.r9",
}  # fmt: skip
"""Fields that hold what the model knows; others read as 0."""
OTHERS = {"list_head": "list", "pt_regs": "regs"}
WHOLE = {"pages.bitmap": (64,), "list": (16,)}
"""Sizes of fields that are no numbers: 512 bits; two pointers."""
LARGEST = 1 << 16
STEP = 64
"""Structures begin at multiples of it: policies index their slots by a chunk's address >> 6."""


@dataclass(frozen=True)
class Layout:
    """Of one object."""

    words: np.ndarray
    """int64 [LAYOUT], without the numbers of blocks and chunks."""
    chunk_bytes: int
    block_bytes: int
    owner_bytes: int
    parts: dict[str, int]
    """Where in a process's part its structures begin."""


def layout_of(btf: Btf) -> Layout:
    """Read it off the types."""
    words = np.full(v.LAYOUT, -1, np.int64)
    numbers = {name: _structure(btf, names) for name, names in STRUCTURES.items()}
    for i, name in enumerate(v.FIELDS):
        structure, _, path = name.partition(".")
        number = numbers[structure]
        place = btf.place(number, path) if number is not None else None
        at = v.PER_FIELD * i
        if place is not None and (place.bits or place.size in WHOLE.get(path, (1, 2, 4, 8))):
            words[at : at + 4] = place.offset, place.size, place.bit, place.bits
        elif name in DEFAULTS:
            words[at : at + 4] = *DEFAULTS[name], 0, 0
    if any(n is not None and btf.size(n) > LARGEST for n in numbers.values()):
        raise InputError(f"{btf.where}: a structure of the driver has more than {LARGEST} bytes")
    if numbers["region"] is not None and btf.size(numbers["region"]) > STEP:
        raise InputError(f"{btf.where}: uvm_va_block_region_t has more than {STEP} bytes")
    sizes = {name: _up(btf.size(n)) if n is not None else STEP for name, n in numbers.items()}
    parts, at = {}, 0
    sizes["managed"] = max(sizes["managed"], sizes["range"])
    for name in ("managed", "space", "mm", "task"):
        parts[name] = at
        at += sizes[name]
    parts["range"] = parts["managed"]  # a managed range begins with its range
    words[v.CHUNK_STEP], words[v.BLOCK_STEP], words[v.OWNER_STEP] = (
        sizes["chunk"], sizes["block"], at,
    )  # fmt: skip
    words[v.RANGE_AT], words[v.SPACE_AT] = parts["managed"], parts["space"]
    words[v.PROCESSES] = FIRST_PROCESS
    return Layout(words, sizes["chunk"], sizes["block"], at, parts)


def _structure(btf: Btf, names: tuple[str, ...]) -> int | None:
    return next((n for n in map(btf.structure, names) if n is not None), None)


def _up(n: int) -> int:
    return max(-(-n // STEP) * STEP, STEP)


def tree_bytes(btf: Btf) -> int:
    """Room for a bitmap tree."""
    number = _structure(btf, STRUCTURES["tree"])
    return _up(btf.size(number)) if number is not None else STEP


def fill_owners(s: State, btf: Btf, layout: Layout, processes: int) -> None:
    """The structures of each process, which do not change."""
    for i in range(processes):
        base = i * layout.owner_bytes
        for name, path, to in POINTERS:
            if name == "range" and _structure(btf, STRUCTURES["managed"]) is not None:
                continue
            target = address_of(OWNERS, base + layout.parts[to])
            _put(s, btf, name, path, base + layout.parts[name], target)
        for path in ("tgid", "pid"):
            _put(s, btf, "task", path, base + layout.parts["task"], FIRST_PROCESS + i)


def _put(s: State, btf: Btf, name: str, path: str, base: int, value: int) -> None:
    number = _structure(btf, STRUCTURES[name])
    place = btf.place(number, path) if number is not None else None
    if place is not None and place.size in (4, 8) and not place.bits:
        at = int(s.seg[OWNERS, START]) + base + place.offset
        s.mem[at : at + place.size] = np.frombuffer(value.to_bytes(place.size, "little"), np.uint8)


def fields_read(made: Object) -> dict[str, bool]:
    """Kernel fields that the object reads (CO-RE), ``structure.path``, and whether they are filled."""
    short = {n: k for k, names in STRUCTURES.items() for n in names} | OTHERS
    found: dict[str, bool] = {}
    for a in made.notes.accesses:
        if a.kind != FIELD_OFFSET or not a.path:
            continue
        name = a.structure.partition("___")[0]
        told = f"{short.get(name, '')}.{a.path}"
        known = any(
            told == f or told.startswith(f + ".") or f.startswith(told + ".") for f in FILLED
        )
        found[f"{name}.{a.path}"] = known
    return dict(sorted(found.items()))
