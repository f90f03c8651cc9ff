"""Control flow: blocks, who jumps where, who calls whom."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from traces.errors import InputError
from uvmsim.bpf.instructions import CALL, EXIT, JA, JMP, LDX, MOV, Function, Instruction
from uvmsim.bpf.object import Code, Object
from uvmsim.bpf.places import FRAMES

LONGEST = 1 << 16
"""Instructions of a function; the kernel's verifier walks a million."""


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other."""

    start: int
    """Place of the first."""
    body: tuple[Instruction, ...]
    """Without the jump at the end."""
    jump: Instruction | None
    """How it ends: a jump, an exit; None: it runs into the next block."""
    next: tuple[int, ...]
    """Starts of the blocks that may follow: of a conditional jump the one jumped to first."""


def blocks(code: Code, where: str) -> dict[int, Block]:
    """Blocks that can be reached, by their starts, ascending."""
    if len(code.instructions) > LONGEST:
        raise InputError(f"{where}: {code.name} has more than {LONGEST} instructions")
    starts = {0}
    for i in code.instructions:
        if i.is_jump:
            starts |= {i.target, i.at + 1}
        elif i.op == 0x95:
            starts.add(i.at + 1)
    made: dict[int, Block] = {}
    body: list[Instruction] = []
    start = 0
    for i in code.instructions:
        if i.at in starts and body:
            made[start] = Block(start, tuple(body), None, (i.at,))
            body = []
        if not body:
            start = i.at
        after = i.at + i.width
        if i.is_jump:
            following = (i.target,) if i.code == JA else (i.target, after)
            made[start] = Block(start, tuple(body), i, following)
            body, start = [], after
        elif i.kind == JMP and i.code == EXIT:
            made[start] = Block(start, tuple(body), i, ())
            body, start = [], after
        else:
            body.append(i)
    reached, todo = set[int](), [0]
    while todo:
        at = todo.pop()
        if at not in reached:
            reached.add(at)
            todo += made[at].next
    return {at: made[at] for at in sorted(reached)}


def predecessors(found: dict[int, Block]) -> dict[int, int]:
    """How many ways lead into each block."""
    n: dict[int, int] = defaultdict(int)
    for b in found.values():
        for at in b.next:
            n[at] += 1
    return n


def functions_in_registers(found: dict[int, Block]) -> dict[int, dict[int, int]]:
    """At each call, the registers that surely hold the address of a function: register -> function."""
    entry: dict[int, dict[int, int]] = {0: {}}
    at_call: dict[int, dict[int, int]] = {}
    todo = [0]
    while todo:
        start = todo.pop()
        b = found[start]
        held = dict(entry[start])
        for i in b.body:
            if i.kind == JMP and i.code == CALL:
                at_call[i.at] = dict(held)
                for r in range(6):
                    held.pop(r, None)
            elif isinstance(i.ref, Function):
                held[i.dst] = i.ref.number
            elif i.kind == 7 and i.code == MOV and i.by_register and not i.off:
                if i.src in held:
                    held[i.dst] = held[i.src]
                else:
                    held.pop(i.dst, None)
            elif i.kind in (0, LDX, 4, 7):
                held.pop(i.dst, None)
            elif i.kind == 3:  # a store, or an atomic operation that fetches
                held.pop(i.src, None)
                held.pop(i.dst, None)
                held.pop(0, None)
        for after in b.next:
            if after not in entry:
                entry[after] = dict(held)
                todo.append(after)
            else:
                both = {r: f for r, f in entry[after].items() if held.get(r) == f}
                if both != entry[after]:
                    entry[after] = both
                    todo.append(after)
    return at_call


def order_of_calls(made: Object, roots: list[int], calls: dict[int, set[int]]) -> list[int]:
    """Functions that the roots reach, those called first. Raises `InputError` for recursion and for
    more frames than the kernel allows."""
    done: list[int] = []
    depth: dict[int, int] = {}

    def visit(number: int, path: tuple[int, ...]) -> int:
        name = made.functions[number].name
        if number in path:
            raise InputError(f"{made.path}: {name} calls itself; the verifier refuses recursion")
        if len(path) >= FRAMES:
            raise InputError(f"{made.path}: {name} is more than {FRAMES} calls deep")
        if number not in depth:
            inner = [visit(c, (*path, number)) for c in sorted(calls[number])]
            depth[number] = 1 + max(inner, default=0)
            done.append(number)
        if len(path) + depth[number] > FRAMES:
            raise InputError(f"{made.path}: {name} is more than {FRAMES} calls deep")
        return depth[number]

    for root in roots:
        visit(root, ())
    return done
