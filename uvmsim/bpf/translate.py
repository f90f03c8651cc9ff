"""From instructions to Python functions that Numba compiles.

A block with one way into it is written where it is jumped to; the others are arms of a loop over
``block``, which LLVM turns into jumps. Functions are made from their code objects, with globals of
ours only: nothing runs while an object is translated, and translated code reaches ``mem`` and maps
through `uvmsim.bpf.memory`, `maps` and `helpers` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import numpy as np

from traces.errors import InputError
from uvmsim.bpf import alu as alu_
from uvmsim.bpf import expressions as e
from uvmsim.bpf import memory
from uvmsim.bpf.flow import Block, blocks, functions_in_registers, order_of_calls, predecessors
from uvmsim.bpf.helpers import HELPERS_THAT_RUN, WORK_QUEUES
from uvmsim.bpf.instructions import (
    ALU32,
    ALU64,
    ATOMIC,
    CALL,
    EXIT,
    JA,
    LDX,
    WIDE,
    Data,
    Function,
    Instruction,
    Kernel,
    Map,
)
from uvmsim.bpf.names import LOOP, helper_name
from uvmsim.bpf.object import Code, Object
from uvmsim.bpf.places import FRAME_BYTES, FUNCTIONS, MAPS, address_of
from uvmsim.bpf.state import BUDGET, REGISTERS

MOST_LOOPS = 1 << 23
"""BPF_MAX_LOOPS (kernel/bpf/bpf_iter.c)."""
TOO_BIG, INVALID = (np.uint64(2**64 - n) for n in (7, 22))
DEEPEST = 24
"""Blocks written inside one another; Python's own limit is 100 levels."""
SET_CALLBACK = "bpf_wq_set_callback_impl"
ARGUMENTS = "s, d, r1, r2, r3, r4, r5, r10"

_RUNTIME: dict[str, Any] = {
    name: value
    for module in (memory, alu_)
    for name, value in vars(module).items()
    if callable(value) and not name.startswith("_")
}


@dataclass(frozen=True)
class Translated:
    """Functions by number, in the order in which each calls only those before it."""

    functions: dict[int, FunctionType]
    """Each takes ``(s, d, r1, r2, r3, r4, r5, r10)`` and returns r0."""
    groups: dict[str, FunctionType]
    """``(s, d, r1, r10)``: the functions of a group, one after the other; returns the last one's r0."""
    work: FunctionType
    """``(s, d, number, r1, r2, r3, r10)``: the callback of a work item."""
    works: tuple[int, ...]
    """Functions that work items call back."""
    source: str


@dataclass
class Calls:
    """What the functions of an object call."""

    functions: dict[int, set[int]]
    helpers: dict[int, set[int]]
    kernel: dict[int, set[str]]
    work: set[int]
    """Functions that work items call back."""


def calls_of(made: Object) -> Calls:
    """Of all functions, those that never run too."""
    found = Calls({}, {}, {}, set())
    for f in made.functions:
        graph = blocks(f, made.path)
        known = functions_in_registers(graph)
        functions: set[int] = set()
        helpers: set[int] = set()
        kernel: set[str] = set()
        for b in graph.values():
            for i in b.body:
                if i.kind != 5 or i.code != CALL:
                    continue
                if isinstance(i.ref, Function):
                    functions.add(i.ref.number)
                elif isinstance(i.ref, Kernel):
                    kernel.add(i.ref.name)
                    if i.ref.name == SET_CALLBACK and 2 in known[i.at]:
                        found.work.add(known[i.at][2])
                else:
                    helpers.add(i.imm)
                    if i.imm == LOOP and 2 in known[i.at]:
                        functions.add(known[i.at][2])
        found.functions[f.number] = functions
        found.helpers[f.number], found.kernel[f.number] = helpers, kernel
    return found


def translate(
    made: Object, groups: Mapping[str, list[int]], kernel: Mapping[str, Callable[..., Any]],
    segments: Mapping[str, int], keep: bool = False,
) -> Translated:  # fmt: skip
    """Functions that the ``groups`` reach, and the callbacks of work items.

    ``groups``: functions that are called together, by a name of the caller's. ``kernel``: kernel
    functions by name, ``(s, d, r1, .., r5, pc)``. ``segments``: number of each data section's
    segment. ``keep``: registers are kept in `State.n` when a function returns. Raises `InputError`
    for what cannot run.
    """
    calls = calls_of(made)
    roots = [n for numbers in groups.values() for n in numbers]
    reached = order_of_calls(made, roots, calls.functions)
    works = sorted(calls.work) if any(SET_CALLBACK in calls.kernel[f] for f in reached) else []
    order = order_of_calls(made, [*roots, *works], calls.functions)
    constants = e.Constants()
    names: dict[str, Any] = {}
    parts = []
    for number in order:
        writer = _Writer(made, made.functions[number], kernel, segments, constants, names, keep)
        parts.append(writer.source())
    parts.append(_dispatch(works))
    parts += [_group(name, numbers) for name, numbers in groups.items()]
    source = "\n\n".join(parts) + "\n"
    made_functions = _make(source, constants, names)
    return Translated(
        {n: made_functions[f"f{n}"] for n in order},
        {name: made_functions[f"group_{name}"] for name in groups},
        made_functions["work"],
        tuple(works),
        source,
    )


def _dispatch(works: list[int]) -> str:
    lines = ["def work(s, d, number, r1, r2, r3, r10):"]
    for n in works:
        lines.append(f"    if number == {n}:")
        lines.append(f"        return f{n}(s, d, r1, r2, r3, zero, zero, r10)")
    return "\n".join([*lines, "    return zero"])


def _group(name: str, numbers: list[int]) -> str:
    lines = [f"def group_{name}(s, d, r1, r10):", "    r0 = zero"]
    lines += [f"    r0 = f{n}(s, d, r1, zero, zero, zero, zero, r10)" for n in numbers]
    return "\n".join([*lines, "    return r0"])


def _make(source: str, constants: e.Constants, names: dict[str, Any]) -> dict[str, FunctionType]:
    """Functions of a source that consists of functions; it is not run."""
    scope: dict[str, Any] = {"__name__": memory.__name__, "np": np}
    scope |= {name: np.uint64(value) for value, name in constants.names.items()}
    scope |= names
    scope |= {"zero": np.uint64(0), "one": np.uint64(1), "MOST_LOOPS": np.uint64(MOST_LOOPS)}
    scope |= {"TOO_BIG": TOO_BIG, "INVALID": INVALID, "REGISTERS": REGISTERS}
    scope["BUDGET"] = BUDGET
    whole = compile(source, "<bpf>", "exec", dont_inherit=True)
    found = {}
    for code in whole.co_consts:
        if isinstance(code, CodeType):
            reads = set(code.co_names)
            own = {k: v for k, v in (_RUNTIME | scope).items() if k in reads or k == "__name__"}
            made = FunctionType(code, own, code.co_name)
            made.__module__ = memory.__name__
            found[code.co_name] = made
    for made in found.values():
        called = set(made.__code__.co_names)
        made.__globals__.update({k: v for k, v in found.items() if k in called})
    return found


class _Writer:
    """The source of one function."""

    def __init__(
        self, made: Object, code: Code, kernel: Mapping[str, Callable[..., Any]],
        segments: Mapping[str, int], constants: e.Constants, names: dict[str, Any], keep: bool,
    ):  # fmt: skip
        self._made, self._code, self._kernel, self._segments = made, code, kernel, segments
        self._k, self._names, self._keep = constants, names, keep
        self._graph = blocks(code, made.path)
        ways = predecessors(self._graph)
        self._known = functions_in_registers(self._graph)
        self._arms = {at for at in self._graph if at == 0 or ways[at] != 1}
        self._arms |= {b.start for b in self._graph.values() if b.start in b.next}
        self._lines: list[str] = []
        self._loops: list[str] = []

    def source(self) -> str:
        """Its functions: the loops it asks bpf_loop for, and itself."""
        written: dict[int, list[str]] = {}
        todo, seen = [0], set[int]()
        while todo:
            at = todo.pop()
            if at in seen:
                continue
            seen.add(at)
            self._lines = []
            self._write(at, "            ", 0)
            written[at] = self._lines
            todo += [a for a in self._arms if a in self._wanted and a not in seen]
        head = [f"def f{self._code.number}({ARGUMENTS}):"]
        head += [f"    r{n} = zero" for n in (0, 6, 7, 8, 9)]
        # A way out that every path passes by and none takes. Without it, a block that all paths lead
        # through would get names of its own from Numba, which blocks before it in time but after it in
        # the text would then read; and of an endless loop Numba cannot tell what is alive.
        head += ["    block = 0", "    while s.n[BUDGET] >= 0:"]
        body = []
        for at in sorted(written):
            body += [f"        if block == {at}:", *written[at]]
        body.append("    return r0")
        return "\n\n".join([*self._loops, "\n".join(head + body)])

    @property
    def _wanted(self) -> set[int]:
        return {n for b in self._graph.values() for n in b.next}

    def _write(self, at: int, pad: str, depth: int) -> None:
        """A block and those that are written inside it."""
        block = self._graph[at]
        for i in block.body:
            self._lines.append(pad + self._line(i))
        jump = block.jump
        if jump is None or (jump.is_jump and jump.code == JA):
            self._go(block, block.next[0], pad, depth)
        elif jump.code == EXIT and not jump.is_jump:
            if self._keep:
                for n in range(10):
                    self._lines.append(f"{pad}s.n[REGISTERS + {n}] = np.int64(r{n})")
            self._lines.append(f"{pad}return r0")
        else:
            self._lines.append(f"{pad}if {e.condition(jump, self._k)}:")
            self._go(block, block.next[0], pad + " ", depth + 1)
            self._go(block, block.next[1], pad, depth)

    def _go(self, block: Block, to: int, pad: str, depth: int) -> None:
        if to <= block.start:
            self._lines.append(f"{pad}spend(s, {self._pc(block.start)})")
        if to in self._arms or depth >= DEEPEST:
            self._arms.add(to)
            self._lines += [f"{pad}block = {to}", f"{pad}continue"]
        else:
            self._write(to, pad, depth)

    def _pc(self, at: int) -> str:
        return self._k(self._code.number << 20 | at)

    def _refuse(self, i: Instruction, why: str) -> InputError:
        return InputError(f"{self._made.place(self._code, i.at)}: {why}")

    def _line(self, i: Instruction) -> str:
        pc = self._pc(i.at)
        if i.kind in (ALU32, ALU64):
            return e.alu(i, self._k)
        if i.op == WIDE:
            return f"r{i.dst} = {self._k(self._value(i))}"
        if i.kind == 5:
            return self._call(i, pc)
        if e.outside_frame(i):
            raise self._refuse(i, f"r10{i.off:+d} is outside the frame of {FRAME_BYTES} bytes")
        if i.kind == LDX:
            return e.load(i, self._k, pc)
        return e.atomic(i, self._k, pc) if i.mode == ATOMIC else e.store(i, self._k, pc)

    def _value(self, i: Instruction) -> int:
        """What a lddw holds."""
        if isinstance(i.ref, Map):
            return address_of(MAPS, 64 * i.ref.number)
        if isinstance(i.ref, Function):
            return address_of(FUNCTIONS, 8 * i.ref.number)
        if isinstance(i.ref, Data):
            return address_of(self._segments[i.ref.section], i.ref.offset)
        return i.imm

    def _call(self, i: Instruction, pc: str) -> str:
        if isinstance(i.ref, Function):
            return f"r0 = f{i.ref.number}(s, d, r1, r2, r3, r4, r5, r10 + {self._k(FRAME_BYTES)})"
        given = f"(s, d, r1, r2, r3, r4, r5, {pc})"
        if isinstance(i.ref, Kernel):
            known = WORK_QUEUES | dict(self._kernel)
            if i.ref.name not in known:
                raise self._refuse(i, f"calls {i.ref.name}, which is not simulated")
            if i.ref.name == SET_CALLBACK and 2 not in self._known[i.at]:
                raise self._refuse(i, "which function is the callback cannot be told")
            self._names[f"kernel_{i.ref.name}"] = known[i.ref.name]
            return f"r0 = kernel_{i.ref.name}{given}"
        if i.imm == LOOP:
            return self._loop(i, pc)
        if i.imm not in HELPERS_THAT_RUN:
            raise self._refuse(i, f"calls {helper_name(i.imm)}, which is not simulated")
        helper = HELPERS_THAT_RUN[i.imm]
        self._names[f"helper_{i.imm}"] = helper
        return f"r0 = helper_{i.imm}{given}"

    def _loop(self, i: Instruction, pc: str) -> str:
        """bpf_loop, with its callback known."""
        callback = self._known[i.at].get(2)
        if callback is None:
            raise self._refuse(i, "which function bpf_loop calls cannot be told")
        name = f"loop_{self._code.number}_{i.at}"
        self._loops.append(
            f"def {name}(s, d, n, context, flags, r10):\n"
            "    if flags != zero:\n        return INVALID\n"
            "    if n > MOST_LOOPS:\n        return TOO_BIG\n"
            "    i = zero\n"
            "    while i < n:\n"
            f"        spend(s, {pc})\n"
            f"        if f{callback}(s, d, i, context, zero, zero, zero, r10) != zero:\n"
            "            return i + one\n"
            "        i = i + one\n"
            "    return i"
        )
        return f"r0 = {name}(s, d, r1, r3, r4, r10 + {self._k(FRAME_BYTES)})"
