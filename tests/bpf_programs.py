"""eBPF programs for tests: our own, compiled where clang is, and ones put together by hand."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from naive_bpf import Machine, NaiveMap

import uvmsim
from uvmsim.bpf import btf, btf_ext, room
from uvmsim.bpf import state as st
from uvmsim.bpf.instructions import Function, Kernel, Map, decode
from uvmsim.bpf.live import LAYOUT
from uvmsim.bpf.maps_of import MapSpec
from uvmsim.bpf.names import map_type
from uvmsim.bpf.object import Code, Object
from uvmsim.bpf.places import CONTEXT, LAST_OF_KERNEL, STACK, address_of
from uvmsim.bpf.translate import translate
from uvmsim.core.bind import bind

SOURCES = Path(__file__).parent / "bpf"
HEADER = Path(uvmsim.__file__).parent / "policies" / "bpf"
CLANG = shutil.which("clang")
WITHOUT = "clang is not here (Debian: apt-get install clang)"
needs_clang = pytest.mark.skipif(CLANG is None, reason=WITHOUT)


def compiled(name: str, folder: Path, *flags: str) -> Path:
    """``tests/bpf/NAME.bpf.c`` as an object in ``folder``."""
    if CLANG is None:
        pytest.skip(WITHOUT)
    made = folder / f"{name}.bpf.o"
    compile_c(SOURCES / f"{name}.bpf.c", made, *flags)
    return made


def compile_c(source: Path, to: Path, *flags: str) -> None:
    """What a user would do."""
    command = [
        CLANG or "clang", "-target", "bpf", "-g", "-O2", "-Wall", "-Werror", "-Wno-unused", *flags,
        "-I", str(HEADER), "-c", str(source), "-o", str(to),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)


class Nobody(NamedTuple):
    """A driver without blocks, for programs that ask it nothing."""

    block_of: np.ndarray
    next: np.ndarray
    prev: np.ndarray
    n_pages: np.ndarray
    tenant_of: np.ndarray
    accessed: np.ndarray


def nobody() -> Nobody:
    i32 = np.int32
    return Nobody(
        np.zeros(1, i32), np.zeros(2, i32), np.zeros(2, i32), np.zeros(1, i32), np.zeros(1, np.int8),
        np.zeros(8, np.uint64),
    )  # fmt: skip


def instruction(op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    """Eight bytes."""
    imm = (imm + (1 << 31)) % (1 << 32) - (1 << 31)
    return struct.pack("<BBhi", op, dst | src << 4, off, imm)


def lddw(dst: int, value: int) -> bytes:
    """A 64-bit constant."""
    return instruction(0x18, dst, 0, 0, value) + instruction(0, imm=value >> 32)


EXIT = instruction(0x95)


class Both:
    """A program translated, and the same interpreted. ``code``: functions; ``references``: of
    (function, place), ``("map", n)``, ``("function", n)`` or ``("kernel", name)``; ``maps``: (kind,
    key, value, entries)."""

    def __init__(self, code, references=None, maps=(), kernel=None, steps=1 << 20):
        self.code, self.references = list(code), references or {}
        made = self.object(maps)
        plan = room.plan_of(made)
        self.state = room.new_state(made, [64] * 6, np.zeros(LAYOUT, np.int64))
        self.translated = translate(made, {"main": [0]}, kernel or {}, plan.data, keep=True)
        self.made, self.steps = made, steps
        self.run = bind(
            _template, {_program: self.translated.groups["main"]}, states=(self.state,)
        ).run
        segments = {
            i: (bytearray(int(row[st.READABLE])), bool(row[st.WRITABLE]))
            for i, row in enumerate(self.state.seg)
        }
        self.naive_maps = [
            NaiveMap(map_type(m.type), m.key, m.value, m.entries, plan.maps[i])
            for i, m in enumerate(made.maps)
        ]
        self.naive = Machine(
            segments, self.naive_maps, dict(enumerate(self.code)), self.references, steps=1 << 30
        )

    def object(self, maps) -> Object:
        types = btf.Btf([btf.Type("void", 0, 0)], b"\0", "test.o")
        specs = [
            MapSpec(f"m{i}", i, k, key, v, n, None, None) for i, (k, key, v, n) in enumerate(maps)
        ]
        made = Object("test.o", "", types, btf_ext.Notes(), [], specs, {}, [])
        kinds = {"map": Map, "function": Function, "kernel": Kernel}
        for number, code in enumerate(self.code):

            def find(at, op, src, imm, number=number):
                what, value = self.references.get((number, at), (None, None))
                return kinds[what](value) if what else None

            where = Code(number, f"f{number}", "test", 0, ())
            told = decode(code, lambda at, w=where: made.place(w, at), find)
            made.functions.append(Code(number, f"f{number}", "test", 0, told))
        return made

    def context(self, data: bytes) -> None:
        """What r1 points to."""
        at = int(self.state.seg[CONTEXT, st.START])
        self.state.mem[at : at + len(data)] = np.frombuffer(data, np.uint8)
        self.naive.segments[CONTEXT][0][: len(data)] = data

    def run_translated(self) -> None:
        """The translated one alone."""
        r1, r10 = address_of(CONTEXT), address_of(STACK, 512)
        self.state.n[st.BUDGET] = self.steps
        self.run(self.state, nobody(), np.uint64(r1), np.uint64(r10))

    def call(self) -> None:
        """Run both; registers, stack and maps are equal."""
        self.run_translated()
        self.naive.run(0, [address_of(CONTEXT)])
        self.compare()

    def compare(self) -> None:
        """Registers and memory."""
        mine = [int(x) & (1 << 64) - 1 for x in self.state.n[st.REGISTERS : st.REGISTERS + 10]]
        both = enumerate(zip(mine, self.naive.registers, strict=True))
        parted = {f"r{i}": (hex(a), hex(b)) for i, (a, b) in both if a != b}
        assert not parted, parted
        self.compare_memory()

    def compare_memory(self) -> None:
        """Stack, data and every map."""
        for i, (data, writable) in self.naive.segments.items():
            start, n = self.state.seg[i, st.START], self.state.seg[i, st.READABLE]
            if writable and i <= LAST_OF_KERNEL:
                assert bytes(self.state.mem[start : start + n]) == bytes(data), i
        for i, m in enumerate(self.naive_maps):
            data = self.naive.segments[m.segment][0]
            start, n = int(self.state.seg[m.segment, st.START]), len(data)
            mine = bytes(self.state.mem[start : start + n])
            assert mine == bytes(data), f"map {i}"
            if m.hashed:
                assert self.state.maps[i, st.USED] == len(m.where)
                assert sorted(self.elements(i)) == sorted(m.where.values())

    def elements(self, m: int):
        """Elements in the buckets of a map."""
        row = self.state.maps[m]
        for bucket in range(int(row[st.N_BUCKETS])):
            i = self.state.table[row[st.BUCKETS] + bucket]
            while i >= 0:
                yield int(i)
                i = self.state.table[row[st.CHAIN] + i]


def _program(s, d, r1, r10):
    return r1


def _template(s, d, r1, r10):
    return _program(s, d, r1, r10)
