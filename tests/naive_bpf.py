"""eBPF, instruction by instruction and obvious: what `uvmsim.bpf` must equal in registers and maps.

Written from instruction-set.rst and bpf-helpers(7), with Python's whole numbers, bytes and
dictionaries. It shares with the product the loader's answer to what a relocation means, and nothing
else.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass, field

M64, M32 = (1 << 64) - 1, (1 << 32) - 1
BASE = 0xFFFF_8880_0000_0000


class Fault(Exception):
    """An access outside a program's memory, or too many steps."""


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


@dataclass
class NaiveMap:
    """A map; elements have numbers, since programs see where values lie."""

    kind: str
    key: int
    value: int
    entries: int
    segment: int
    where: OrderedDict = field(default_factory=OrderedDict)
    """Key -> number of its element, for an LRU map the one used last at the end."""
    free: list = field(default_factory=list)

    def __post_init__(self):
        self.round_key = -(-self.key // 8) * 8 if self.hashed else 0
        self.stride = self.round_key + -(-self.value // 8) * 8
        self.free = list(range(self.entries))

    @property
    def hashed(self):
        return "HASH" in self.kind

    def element(self, key: bytes):
        if not self.hashed:
            number = int.from_bytes(key, "little")
            return number if number < self.entries else None
        if key in self.where and self.kind.startswith("LRU"):
            self.where.move_to_end(key)
        return self.where.get(key)

    def address(self, element: int) -> int:
        return BASE + (self.segment << 32) + element * self.stride + self.round_key


class Machine:
    """Segments of bytes: number -> (bytes, whether they may be written)."""

    def __init__(self, segments, maps, functions, references, kernel=None, now=0, steps=1 << 20):
        self.segments, self.maps, self.now, self.left = segments, maps, now, steps
        self.functions = {n: self.split(code) for n, code in functions.items()}
        self.references = references
        """(function, place) -> ("map", n), ("function", n), ("value", v) or ("kernel", name)."""
        self.kernel = kernel or {}
        self.registers = [0] * 11

    @staticmethod
    def split(code):
        return [struct.unpack_from("<BBhi", code, at) for at in range(0, len(code), 8)]

    # ---- memory ---------------------------------------------------------------------------------

    def find(self, address, size, write):
        at = (address - BASE) & M64
        number, offset = at >> 32, at & M32
        data, writable = self.segments.get(number, (None, False))
        if data is None or offset + size > len(data) or (write and not writable):
            return None, 0
        return data, offset

    def read(self, address, size):
        data, at = self.find(address & M64, size, False)
        if data is None:
            number = ((address - BASE) & M64) >> 32
            if number in self.segments and len(self.segments[number][0]) and not 5 <= number <= 10:
                raise Fault(f"read of {size} bytes at {address & M64:#x}")
            return bytes(size)
        return bytes(data[at : at + size])

    def write(self, address, value: bytes):
        data, at = self.find(address & M64, len(value), True)
        if data is None:
            raise Fault(f"write of {len(value)} bytes at {address & M64:#x}")
        data[at : at + len(value)] = value

    # ---- instructions ---------------------------------------------------------------------------

    def run(self, function, arguments, frame=0):
        """r0 of a function; `registers` keeps what r0 to r9 were at its end."""
        r = [0] * 11
        r[1 : 1 + len(arguments)] = arguments
        r[10] = BASE + (1 << 32) + 512 * (frame + 1)
        code, pc = self.functions[function], 0
        while True:
            self.left -= 1
            if self.left < 0:
                raise Fault("too many steps")
            op, registers, off, imm = code[pc]
            dst, src = registers & 15, registers >> 4
            kind = op & 7
            if op == 0x18:
                what, value = self.references.get((function, pc), ("value", None))
                if what == "map":
                    r[dst] = BASE + (0x7000 << 32) + 64 * value
                elif what == "function":
                    r[dst] = BASE + (0x7001 << 32) + 8 * value
                elif value is not None:
                    r[dst] = value
                else:
                    r[dst] = (imm & M32) | (code[pc + 1][3] & M32) << 32
                pc += 2
                continue
            if kind == 7:
                r[dst] = self.alu(op, r[dst], r[src] if op & 8 else imm & M64, off, imm, 64)
            elif kind == 4:
                a = r[dst] if op >> 4 == 13 else r[dst] & M32
                r[dst] = self.alu(op, a, (r[src] if op & 8 else imm) & M32, off, imm, 32)
            elif kind == 1:
                size = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}[op & 0x18]
                value = int.from_bytes(self.read(r[src] + off, size), "little")
                r[dst] = signed(value, 8 * size) & M64 if op & 0xE0 == 0x80 else value
            elif kind in (2, 3):
                self.store(op, r, dst, src, off, imm)
            elif op == 0x95:
                self.registers = r[:10]
                return r[0]
            elif op == 0x85:
                self.call(function, pc, r, src, imm, frame)
            else:
                wide = kind == 5
                if op >> 4 == 0:
                    pc += 1 + (off if wide else imm)
                    continue
                b = r[src] if op & 8 else imm & M64
                if self.taken(op >> 4, r[dst], b, 64 if wide else 32):
                    pc += off
            pc += 1

    def alu(self, op, a, b, off, imm, bits):
        mask = (1 << bits) - 1
        code = op >> 4
        if code == 13:  # byte order
            width = imm
            value = a & ((1 << width) - 1)
            if bits == 64 or op & 8:
                value = int.from_bytes(value.to_bytes(width // 8, "little"), "big")
            return value
        if code == 11:
            return (signed(b, off) & mask) if off else b & mask
        if code in (3, 9) and off == 1:
            x, y = signed(a, bits), signed(b, bits)
            if y == 0:
                return 0 if code == 3 else a & mask
            q = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
            return (q if code == 3 else x - q * y) & mask
        if code == 3:
            return a // b & mask if b else 0
        if code == 9:
            return a % b & mask if b else a & mask
        shift = b & (bits - 1)
        table = {
            0: lambda: a + b, 1: lambda: a - b, 2: lambda: a * b, 4: lambda: a | b,
            5: lambda: a & b, 6: lambda: a << shift, 7: lambda: (a & mask) >> shift,
            8: lambda: -a, 10: lambda: a ^ b, 12: lambda: signed(a, bits) >> shift,
        }  # fmt: skip
        return table[code]() & mask

    @staticmethod
    def taken(code, a, b, bits):
        a, b = a & ((1 << bits) - 1), b & ((1 << bits) - 1)
        x, y = signed(a, bits), signed(b, bits)
        return {
            1: a == b, 2: a > b, 3: a >= b, 4: a & b != 0, 5: a != b, 6: x > y, 7: x >= y,
            10: a < b, 11: a <= b, 12: x < y, 13: x <= y,
        }[code]  # fmt: skip

    def store(self, op, r, dst, src, off, imm):
        size = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}[op & 0x18]
        mask = (1 << 8 * size) - 1
        at = (r[dst] + off) & M64
        if op & 0xE0 == 0x60:
            value = imm if op & 7 == 2 else r[src]
            self.write(at, (value & mask).to_bytes(size, "little"))
            return
        if imm == 0x100:
            r[dst] = int.from_bytes(self.read(r[src] + off, size), "little")
            return
        if imm == 0x110:
            self.write(at, (r[src] & mask).to_bytes(size, "little"))
            return
        data, _ = self.find(at, size, True)
        if data is None:
            raise Fault("atomic outside memory")
        old, b = int.from_bytes(self.read(at, size), "little"), r[src] & mask
        if imm == 0xF1:
            new = b if old == r[0] & mask else old
        elif imm == 0xE1:
            new = b
        else:
            new = {0: old + b, 0x40: old | b, 0x50: old & b, 0xA0: old ^ b}[imm & ~1]
        self.write(at, (new & mask).to_bytes(size, "little"))
        if imm == 0xF1:
            r[0] = old
        elif imm & 1:
            r[src] = old

    # ---- calls ----------------------------------------------------------------------------------

    def call(self, function, pc, r, src, imm, frame):
        what, value = self.references.get((function, pc), ("helper", imm))
        if what == "function":
            r[0] = self.run(value, r[1:6], frame + 1)
        elif what == "kernel":
            r[0] = self.kernel[value](self, *r[1:6]) & M64
        elif imm == 181:
            r[0] = self.loop(r, frame)
        else:
            r[0] = getattr(self, f"helper_{imm}")(*r[1:6]) & M64

    def loop(self, r, frame):
        n, callback, context, flags = r[1], (r[2] & M32) // 8, r[3], r[4]
        if flags:
            return -22 & M64
        if n > 1 << 23:
            return -7 & M64
        for i in range(n):
            if self.run(callback, [i, context, 0, 0, 0], frame + 1):
                return i + 1
        return n

    def given(self, address, size):
        if self.find(address & M64, size, False)[0] is None:
            raise Fault(f"a helper is given {address & M64:#x}")
        return self.read(address, size)

    def map(self, address):
        number = ((address - BASE) & M32) // 64
        if ((address - BASE) & M64) >> 32 != 0x7000 or number >= len(self.maps):
            raise Fault("no map")
        return self.maps[number]

    def helper_1(self, m, key, *_):
        m = self.map(m)
        i = m.element(self.given(key, m.key))
        return m.address(i) if i is not None else 0

    def helper_2(self, m, key, value, flags, *_):
        m = self.map(m)
        flags &= ~4
        if flags > 2:
            return -22
        value = self.given(value, m.value)
        key = self.given(key, m.key)
        i = m.element(key)
        if not m.hashed and i is None:
            return -7
        if i is not None and flags == 1:
            return -17
        if i is None:
            if flags == 2:
                return -2
            if not m.free and m.kind.startswith("LRU"):
                self.drop(m, next(iter(m.where)))
            if not m.free:
                return -7
            i = m.where[key] = m.free.pop(0)
            data = self.segments[m.segment][0]
            data[i * m.stride : i * m.stride + m.key] = key
        self.write(m.address(i), value)
        return 0

    @staticmethod
    def drop(m, key):
        m.free.insert(0, m.where.pop(key))

    def helper_3(self, m, key, *_):
        m = self.map(m)
        if not m.hashed:
            return -22
        key = self.given(key, m.key)
        if m.element(key) is None:
            return -2
        self.drop(m, key)
        return 0

    def helper_5(self, *_):
        return 3_600_000_000_000 + self.now

    def helper_8(self, *_):
        return 0

    def helper_14(self, *_):
        return 500 << 32 | 500

    def helper_6(self, *_):
        return 1

    def helper_113(self, to, n, source, *_):
        n &= M32
        if n == 0:
            return 0
        data, at = self.find(source, n, False)
        self.write(to, bytes(n) if data is None else bytes(data[at : at + n]))
        return -14 if data is None else 0
