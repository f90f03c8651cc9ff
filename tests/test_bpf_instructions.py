"""Translated programs against the interpreter: every instruction, and programs put together at
random."""

from __future__ import annotations

import random
import struct

import pytest
from bpf_programs import EXIT, Both, instruction, lddw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EDGES = [
    0, 1, 2, 7, 31, 32, 63, 64, 0x7F, 0x80, 0xFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000,
    0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 0x0123456789ABCDEF,
]  # fmt: skip
ARRAY, HASH, LRU = 2, 1, 9
ALU_CODES = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]
SHIFTS = (6, 7, 12)
ROOM = 2048


def every_alu() -> list[bytes]:
    """Each writes its result to r2; r2 and r3 hold the operands."""
    found = []
    for kind in (4, 7):
        bits = 32 if kind == 4 else 64
        for code in ALU_CODES:
            offs = (0, 1) if code in (3, 9) else (0,)
            found += [instruction(code << 4 | 8 | kind, 2, 3, off) for off in offs]
            imms = (0, 1, bits - 1) if code in SHIFTS else (0, 1, -1, -(1 << 31), 12345)
            found += [instruction(code << 4 | kind, 2, 0, off, imm) for off in offs for imm in imms]
        found.append(instruction(0x80 | kind, 2))  # neg
        signs = (8, 16) if kind == 4 else (8, 16, 32)
        found += [instruction(0xB8 | kind, 2, 3, off) for off in signs]  # movsx
    found += [instruction(op, 2, 0, 0, n) for op in (0xD4, 0xDC, 0xD7) for n in (16, 32, 64)]
    return found


def every_jump() -> list[bytes]:
    """Each skips one instruction or not."""
    codes = (1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13)
    found = [instruction(c << 4 | 8 | k, 2, 3, 1) for c in codes for k in (5, 6)]
    return found + [
        instruction(c << 4 | k, 2, 0, 1, imm)
        for c in codes
        for k in (5, 6)
        for imm in (0, 1, -1, 77)
    ]


def harness(rows: list[bytes]) -> Both:
    """A program that puts the result of each row into an array map."""
    code = [
        instruction(0xBF, 6, 1),
        instruction(0x62, 10, 0, -4, 0),
        lddw(1, 0),
        instruction(0xBF, 2, 10),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x85, imm=1),
        instruction(0x55, 0, 0, 1, 0),
        EXIT,
        instruction(0xBF, 7, 0),
    ]
    for i, row in enumerate(rows):
        code += [instruction(0x79, 2, 6, 0), instruction(0x79, 3, 6, 8), instruction(0xBF, 0, 2)]
        code += [row, instruction(0x7B, 7, 2, 8 * i)]
    whole = b"".join([*code, instruction(0xB7, 0), EXIT])
    return Both([whole], {(0, 2): ("map", 0)}, [(ARRAY, 4, 8 * len(rows), 1)])


def pairs() -> list[tuple[int, int]]:
    rng = random.Random(1)
    found = [(a, b) for a in EDGES for b in EDGES]
    return found + [(rng.getrandbits(64), rng.getrandbits(64)) for _ in range(300)]


def test_every_alu_instruction():
    both = harness(every_alu())
    for a, b in pairs():
        both.context(struct.pack("<QQ", a, b))
        both.call()


def test_every_jump():
    """What is jumped over would change the result."""
    both = harness([row + instruction(0x07, 2, 0, 0, 1) for row in every_jump()])
    for a, b in pairs():
        both.context(struct.pack("<QQ", a, b))
        both.call()


def test_loads_stores_and_atomics_of_every_size():
    """At odd places too; on the stack through r10 and through another register."""
    rows = []
    for size, op in ((1, 0x10), (2, 0x08), (4, 0x00), (8, 0x18)):
        for base, off in ((10, -24), (10, -19), (4, 8), (4, 3)):
            rows += [instruction(0x63 | op & 0x18, base, 3, off)]  # stx
            rows += [instruction(0x61 | op, 2, base, off)]
            if size < 8:
                rows += [instruction(0x81 | op, 2, base, off)]
            rows += [instruction(0x62 | op, base, 0, off, -77)]
    for size in (0x00, 0x18):
        for imm in (0x00, 0x01, 0x40, 0x41, 0x50, 0x51, 0xA0, 0xA1, 0xE1, 0xF1, 0x100, 0x110):
            dst, src = (2, 4) if imm == 0x100 else (4, 2)
            rows += [instruction(0xC3 | size, dst, src, 8, imm)]
    rows = [instruction(0xBF, 4, 10) + instruction(0x07, 4, 0, 0, -48) + row for row in rows]
    both = harness(rows)
    for a, b in pairs()[::7]:
        both.context(struct.pack("<QQ", a, b))
        both.call()


def a_program(rng: random.Random) -> tuple[list[bytes], dict]:
    """Straight and forward-jumping code with loops, stack, maps, helpers and a call."""
    middle = rng.random() < 0.5  # the only exit stands before what leads to it
    rows: list[bytes] = [instruction(0xBF, 9, 1)]
    if middle:
        rows += [instruction(0x05, off=2), instruction(0x0F, 0, 6), EXIT]
    rows += [instruction(0x79, r, 1, 8 * r) for r in range(2, 8)]
    rows += [instruction(0x7B, 10, 3, -8 * k) for k in range(1, 9)]
    references: dict = {}
    places = [0]
    for row in rows:
        places.append(places[-1] + len(row) // 8)

    def add(row: bytes) -> None:
        rows.append(row)
        places.append(places[-1] + len(row) // 8)

    alu = every_alu()
    for _ in range(rng.randrange(20, 60)):
        a, b = rng.randrange(0, 8), rng.randrange(0, 8)
        pick = rng.random()
        if pick < 0.45:
            op, _, off, imm = struct.unpack("<BBhi", rng.choice(alu))
            add(
                instruction(
                    op, a, b if op & 8 and op & 7 in (4, 7) and op >> 4 != 13 else 0, off, imm
                )
            )
        elif pick < 0.60:
            at = -rng.randrange(8, 65)
            add(instruction(rng.choice([0x63, 0x6B, 0x73, 0x7B]), 10, a, at))
            add(instruction(rng.choice([0x61, 0x69, 0x71, 0x79, 0x81, 0x89, 0x91]), b, 10, at))
        elif pick < 0.75:
            skipped = instruction(0x07, b, 0, 0, 5) + instruction(0xAF, a, b)
            op, _, _, imm = struct.unpack("<BBhi", rng.choice(every_jump()))
            add(instruction(op, a, b if op & 8 else 0, 2, imm) + skipped)
        elif pick < 0.92:
            helper, m = rng.choice([1, 2, 2, 3]), rng.randrange(3)
            add(instruction(0x7B, 10, a, -72))
            if rng.random() < 0.7:
                add(instruction(0x57, b, 0, 0, 7) + instruction(0x7B, 10, b, -72))
            references[(0, places[-1])] = ("map", m)
            add(lddw(1, 0))
            add(instruction(0xBF, 2, 10) + instruction(0x07, 2, 0, 0, -72))
            add(instruction(0xBF, 3, 10) + instruction(0x07, 3, 0, 0, -40))
            add(instruction(0xB7, 4, 0, 0, rng.choice([0, 0, 0, 1, 2, 3])))
            add(instruction(0x85, imm=helper))
            if helper == 1:
                add(instruction(0x15, 0, 0, 2, 0) + instruction(0x79, 6, 0, 0))
                add(instruction(0xDB, 0, 6, 0, 0))
        elif pick < 0.96:
            n = rng.randrange(1, 9)
            add(instruction(0xB7, 8, 0, 0, n) + instruction(0x0F, a, b))
            add(instruction(0x07, 8, 0, 0, -1) + instruction(0x55, 8, 0, -3, 0))
        else:
            references[(0, places[-1])] = ("function", 1)
            add(instruction(0x85, src=1, imm=0))
    if middle:
        add(instruction(0x05, off=2 - (places[-1] + 1)))
    else:
        add(EXIT)
    second = instruction(0xBF, 0, 1) + instruction(0x0F, 0, 2) + instruction(0x7B, 10, 0, -8)
    second += instruction(0x79, 0, 10, -8) + EXIT
    return [b"".join(rows), second], references


@settings(
    max_examples=8, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(st.integers(0, 2**32))
def test_random_programs(seed):
    """Registers, stack and maps are equal after each call."""
    rng = random.Random(seed)
    code, references = a_program(rng)
    maps = [(HASH, 8, 16, 4), (ARRAY, 4, 24, 3), (LRU, 8, 8, 3)]
    both = Both(code, references, maps)
    for _ in range(60):
        values = [rng.choice([rng.choice(EDGES), rng.getrandbits(64)]) for _ in range(16)]
        both.context(struct.pack("<16Q", *values))
        both.call()


@pytest.mark.parametrize("kind", [HASH, ARRAY, LRU, 5, 6, 10])
def test_maps_through_many_calls(kind):
    """Look-ups, updates with each flag, removals, until the map is full and beyond."""
    key = 4 if kind in (ARRAY, 6) else 8
    head = instruction(0xBF, 9, 1)
    body, references, at = [head], {}, 1
    for helper in (1, 2, 3):
        body.append(instruction(0x79, 7, 9, 0) + instruction(0x55, 7, 0, 9, helper))
        references[(0, at + 2)] = ("map", 0)
        body.append(lddw(1, 0))
        body.append(instruction(0xBF, 2, 9) + instruction(0x07, 2, 0, 0, 16))
        body.append(instruction(0xBF, 3, 9) + instruction(0x07, 3, 0, 0, 24))
        body.append(instruction(0x79, 4, 9, 8) + instruction(0x85, imm=helper))
        body.append(instruction(0xBF, 8, 0))
        at += 11
    both = Both([b"".join([*body, EXIT])], references, [(kind, key, 12, 5)])
    rng = random.Random(kind)
    for _ in range(4000):
        row = rng.choice([1, 1, 2, 2, 2, 3]), rng.choice([0, 0, 0, 1, 2, 4, 9]), rng.randrange(9)
        both.context(struct.pack("<QQQQQ", *row, rng.getrandbits(64), rng.getrandbits(64)))
        both.call()
