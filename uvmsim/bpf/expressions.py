"""One instruction as a line of Python, on registers ``r0`` .. ``r10`` of type uint64.

Constants are globals, ``k0``, ``k1``, ..: a name costs the compiler less than a call of ``np.uint64``.
Nothing of the object's text gets into a line, only its numbers.
"""

from __future__ import annotations

from uvmsim.bpf import instructions as i_
from uvmsim.bpf.instructions import ALU64, FRAME, Instruction
from uvmsim.bpf.places import FRAME_BYTES

ALL, LOW = (1 << 64) - 1, 0xFFFFFFFF
PLAIN = {i_.ADD: "+", i_.SUB: "-", i_.MUL: "*", i_.OR: "|", i_.AND: "&", i_.XOR: "^"}
UNSIGNED = {i_.JEQ: "==", i_.JNE: "!=", i_.JGT: ">", i_.JGE: ">=", i_.JLT: "<", i_.JLE: "<="}
SIGNED = {
    i_.JSGT: ("slt", True), i_.JSGE: ("sle", True), i_.JSLT: ("slt", False),
    i_.JSLE: ("sle", False),
}  # fmt: skip
"""Function, and whether its arguments change places."""


class Constants:
    """Numbers of a program and the globals that hold them."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}

    def __call__(self, value: int) -> str:
        return self.names.setdefault(value & ALL, f"k{len(self.names)}")


def operand(i: Instruction, k: Constants, half: bool) -> str:
    """The second operand, of 32 bits if ``half``."""
    if not i.by_register:
        return k(i.imm & LOW if half else i.imm)
    return f"(r{i.src} & {k(LOW)})" if half else f"r{i.src}"


def alu(i: Instruction, k: Constants) -> str:
    """An ALU instruction's line."""
    half = i.kind != ALU64
    d, low = f"r{i.dst}", k(LOW)
    if i.code == i_.END:
        return f"{d} = {_end(i, k)}"
    if i.code == i_.MOV:
        return f"{d} = {_mov(i, k, half)}"
    if i.code == i_.NEG:
        return f"{d} = ({k(0)} - {d}) & {low}" if half else f"{d} = {k(0)} - {d}"
    a, b = (f"({d} & {low})" if half else d), operand(i, k, half)
    if i.code in PLAIN:
        told = f"{a} {PLAIN[i.code]} {b}"
        return f"{d} = ({told}) & {low}" if half else f"{d} = {told}"
    if i.code in (i_.DIV, i_.MOD):
        name = "div" if i.code == i_.DIV else "mod"
        name = ("s" if i.off else "") + name + ("32" if half and i.off else "")
        return f"{d} = {name}({a}, {b})"
    n = k(i.imm) if not i.by_register else f"(r{i.src} & {k(31 if half else 63)})"
    if i.code == i_.ARSH:
        return f"{d} = arsh{'32' if half else ''}({d}, {n})"
    if i.code == i_.LSH:
        return f"{d} = ({d} << {n}) & {low}" if half else f"{d} = {d} << {n}"
    return f"{d} = {a} >> {n}"


def _mov(i: Instruction, k: Constants, half: bool) -> str:
    if not i.by_register:
        return k(i.imm & LOW if half else i.imm)
    source = f"r{i.src}" if not i.off else f"sext{i.off}(r{i.src})"
    return f"{source} & {k(LOW)}" if half else source


def _end(i: Instruction, k: Constants) -> str:
    swaps = i.kind == ALU64 or i.by_register
    if swaps:
        return f"swap{i.imm}(r{i.dst})"
    return f"r{i.dst} & {k((1 << i.imm) - 1)}"


def condition(i: Instruction, k: Constants) -> str:
    """What a conditional jump asks."""
    half = i.kind == i_.JMP32
    a, b = (f"(r{i.dst} & {k(LOW)})" if half else f"r{i.dst}"), operand(i, k, half)
    if i.code in UNSIGNED:
        return f"{a} {UNSIGNED[i.code]} {b}"
    if i.code == i_.JSET:
        return f"({a} & {b}) != {k(0)}"
    name, swapped = SIGNED[i.code]
    if half:
        a, b = f"sext32({a})", f"sext32({b})"
    return f"{name}({b}, {a})" if swapped else f"{name}({a}, {b})"


def address(register: int, off: int, k: Constants) -> str:
    """A register and an offset."""
    return f"r{register} + {k(off)}" if off else f"r{register}"


def load(i: Instruction, k: Constants, pc: str) -> str:
    """An LDX instruction's line."""
    at, bits = address(i.src, i.off, k), 8 * i.size
    told = f"load_u{bits}(s, d, {at}, {pc})"
    if i.src == FRAME:
        told = f"frame_load_u{bits}(s, {at})"
    return f"r{i.dst} = sext{bits}({told})" if i.mode == i_.MEMSX else f"r{i.dst} = {told}"


def store(i: Instruction, k: Constants, pc: str) -> str:
    """An ST or STX instruction's line."""
    at, bits = address(i.dst, i.off, k), 8 * i.size
    value = f"r{i.src}" if i.kind == i_.STX else k(i.imm)
    if i.dst == FRAME:
        return f"frame_store_u{bits}(s, {at}, {value})"
    return f"store_u{bits}(s, {at}, {value}, {pc})"


def atomic(i: Instruction, k: Constants, pc: str) -> str:
    """An atomic instruction's line."""
    bits = 8 * i.size
    if i.imm == i_.LOAD_ACQUIRE:
        return f"r{i.dst} = load_u{bits}(s, d, {address(i.src, i.off, k)}, {pc})"
    if i.imm == i_.STORE_RELEASE:
        return f"store_u{bits}(s, {address(i.dst, i.off, k)}, r{i.src}, {pc})"
    operation = i.imm if i.imm in (i_.XCHG, i_.CMPXCHG) else i.imm & ~i_.FETCH
    at = address(i.dst, i.off, k)
    told = f"atomic_u{bits}(s, d, {at}, {k(operation)}, r{i.src}, r0, {pc})"
    if i.imm == i_.CMPXCHG:
        return f"r0 = {told}"
    return f"r{i.src} = {told}" if i.imm & i_.FETCH else told


def outside_frame(i: Instruction) -> bool:
    """Whether an access through r10 leaves the 512 bytes below it."""
    base = i.src if i.kind == i_.LDX else i.dst
    if i.mode == i_.ATOMIC and i.imm == i_.LOAD_ACQUIRE:
        base = i.src
    return base == FRAME and not -FRAME_BYTES <= i.off <= -i.size
