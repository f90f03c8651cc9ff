"""Instructions: decoded, and refused where the kernel would (instruction-set.rst)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from traces.errors import InputError

LD, LDX, ST, STX, ALU32, JMP, JMP32, ALU64 = range(8)
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR, MOV, ARSH, END = range(14)
JA, JEQ, JGT, JGE, JSET, JNE, JSGT, JSGE, CALL, EXIT, JLT, JLE, JSLT, JSLE = range(14)
MEM, MEMSX, ATOMIC = 0x60, 0x80, 0xC0
WIDE = 0x18
"""lddw: a 64-bit constant in two places."""
SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
FETCH, XCHG, CMPXCHG = 0x01, 0xE1, 0xF1
LOAD_ACQUIRE, STORE_RELEASE = 0x100, 0x110
ATOMICS = {0x00: "add", 0x40: "or", 0x50: "and", 0xA0: "xor"}
FRAME = 10
"""r10, the frame pointer, which is read-only."""


@dataclass(frozen=True)
class Map:
    """What a lddw puts into its register: a map."""

    number: int


@dataclass(frozen=True)
class Data:
    """A place in a data section."""

    section: str
    offset: int


@dataclass(frozen=True)
class Function:
    """A function of the object: where a call goes, or what a lddw takes the address of."""

    number: int


@dataclass(frozen=True)
class Kernel:
    """A kernel function that is called by name."""

    name: str


@dataclass(frozen=True)
class Instruction:
    """One instruction; a lddw is one, though it takes two places."""

    at: int
    """Its place in the function."""
    op: int
    dst: int
    src: int
    off: int
    imm: int
    """Signed; of a lddw all 64 bits, unsigned."""
    ref: Map | Data | Function | Kernel | None = None
    """What a relocation put in the place of ``imm``."""

    @property
    def kind(self) -> int:
        return self.op & 7

    @property
    def code(self) -> int:
        """Operation of an ALU or jump instruction."""
        return self.op >> 4

    @property
    def by_register(self) -> bool:
        """Whether the second operand is a register."""
        return bool(self.op & 8)

    @property
    def size(self) -> int:
        """Bytes of a load or store."""
        return SIZES[self.op & 0x18]

    @property
    def mode(self) -> int:
        return self.op & 0xE0

    @property
    def width(self) -> int:
        """Places it takes."""
        return 2 if self.op == WIDE else 1

    @property
    def is_jump(self) -> bool:
        return self.kind in (JMP, JMP32) and self.code not in (CALL, EXIT)

    @property
    def target(self) -> int:
        """Where a jump goes."""
        far = self.kind == JMP32 and self.code == JA
        return self.at + 1 + (self.imm if far else self.off)


Resolve = Callable[[int, int, int, int], Any]
"""What a relocation or a call refers to: ``(place, opcode, src, imm)``; None: nothing."""


def decode(code: bytes, where: Callable[[int], str], resolve: Resolve) -> tuple[Instruction, ...]:
    """The instructions of a function, each valid by itself and every jump within. Raises `InputError`,
    whose message begins with ``where(place)``."""
    if not code or len(code) % 8:
        raise InputError(f"{where(0)}: {len(code)} bytes are no whole instructions")
    rows = [struct.unpack_from("<BBhi", code, i) for i in range(0, len(code), 8)]
    found: list[Instruction] = []
    at = 0
    while at < len(rows):
        op, registers, off, imm = rows[at]
        dst, src = registers & 15, registers >> 4
        ref = None
        if op == WIDE:
            if at + 1 >= len(rows) or rows[at + 1][:3] != (0, 0, 0):
                raise InputError(f"{where(at)}: half of a 64-bit constant")
            ref = resolve(at, op, src, imm)
            if ref is None and src != 0:
                raise InputError(f"{where(at)}: a reference (kind {src}) without its relocation")
            imm = (imm & 0xFFFFFFFF) | (rows[at + 1][3] & 0xFFFFFFFF) << 32
            src = 0
        elif op == 0x85:
            ref = resolve(at, op, src, imm)
        made = Instruction(at, op, dst, src, off, imm, ref)
        why = _refused(made)
        if why:
            raise InputError(f"{where(at)}: {why}")
        found.append(made)
        at += made.width
    _check_jumps(found, where)
    return tuple(found)


def _check_jumps(found: list[Instruction], where: Callable[[int], str]) -> None:
    starts: Mapping[int, Instruction] = {i.at: i for i in found}
    for i in found:
        if i.is_jump and i.target not in starts:
            raise InputError(f"{where(i.at)}: a jump out of the program, or into an instruction")
    last = found[-1]
    ends = last.op == 0x95 or (last.is_jump and last.code == JA)
    if not ends:
        raise InputError(f"{where(last.at)}: the program runs past its end")


def _refused(i: Instruction) -> str | None:
    """Why an instruction is not valid."""
    if i.dst > FRAME or i.src > FRAME:
        return f"register r{max(i.dst, i.src)}, of 0 to 10"
    if i.kind in (ALU32, ALU64):
        why = _bad_alu(i)
    elif i.kind in (JMP, JMP32):
        return _bad_jump(i)
    elif i.op == WIDE:
        why = None
    else:
        return _bad_access(i)
    if why is None and i.dst == FRAME:
        return "writes r10, the frame pointer"
    return why


def _bad_alu(i: Instruction) -> str | None:
    unknown = f"unknown instruction {i.op:#04x}"
    if i.code > END:
        return unknown
    if i.code == END:
        swaps = i.kind == ALU64
        return None if i.imm in (16, 32, 64) and not (swaps and i.by_register) else unknown
    if i.code in (DIV, MOD):
        return None if i.off in (0, 1) else f"{unknown}, offset {i.off}"
    if i.code == MOV:
        allowed = (0, 8, 16, 32) if i.kind == ALU64 and i.by_register else (0, 8, 16)
        if i.off and not i.by_register:
            return f"{unknown}, offset {i.off}"
        return None if i.off in allowed else f"{unknown}, offset {i.off}"
    if i.code in (LSH, RSH, ARSH) and not i.by_register:
        bits = 64 if i.kind == ALU64 else 32
        if not 0 <= i.imm < bits:
            return f"shifts by {i.imm}"
    return None if i.off == 0 else f"{unknown}, offset {i.off}"


def _bad_jump(i: Instruction) -> str | None:
    unknown = f"unknown instruction {i.op:#04x}"
    if i.code == JA:
        return unknown if i.by_register else None
    if i.code == CALL:
        if i.op != 0x85:
            return "a call through a register" if i.op == 0x8D else unknown
        return None if i.src in (0, 1, 2) else f"a call of kind {i.src}"
    if i.code == EXIT:
        return None if i.op == 0x95 else unknown
    if i.op == 0xE5:
        return "may_goto is not supported"
    return None if i.code <= JSLE else unknown


def _bad_access(i: Instruction) -> str | None:
    unknown = f"unknown instruction {i.op:#04x}"
    if i.kind == LD:
        return "LD_ABS and LD_IND read packets; not in a memory policy" if i.op & 0x20 else unknown
    if i.kind == LDX:
        if i.mode not in (MEM, MEMSX) or (i.mode == MEMSX and i.size == 8):
            return unknown
        return "writes r10, the frame pointer" if i.dst == FRAME else None
    if i.mode == MEM:
        return None
    if i.mode != ATOMIC or i.kind != STX:
        return unknown
    if i.imm in (LOAD_ACQUIRE, STORE_RELEASE):
        written = i.dst if i.imm == LOAD_ACQUIRE else -1
        return "writes r10, the frame pointer" if written == FRAME else None
    if i.size < 4 or (i.imm not in (XCHG, CMPXCHG) and i.imm & ~FETCH not in ATOMICS):
        return f"unknown atomic operation {i.imm:#x} of {i.size} bytes"
    fetches = i.imm == XCHG or (i.imm & FETCH and i.imm != CMPXCHG)
    return "writes r10, the frame pointer" if fetches and i.src == FRAME else None
