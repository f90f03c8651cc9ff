"""Expressions of a hook as C: whole numbers of 64 bits, fixed arrays, what the driver tells.

What the kernel's verifier would refuse, or what has no meaning there, is refused with its line.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Protocol

import numpy as np

from traces.errors import InputError
from uvmsim.core.globals_of import plain
from uvmsim.policies.pages import base

BINARY = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^",
    ast.LShift: "<<", ast.RShift: ">>",
}  # fmt: skip
DIVISION: dict[type, str] = {ast.FloorDiv: "floor_div", ast.Mod: "floor_mod"}
COMPARED = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
REGION = {
    base.FIRST: "result->first", base.OUTER: "result->outer", base.MAX_FIRST: "most->first",
    base.MAX_OUTER: "most->outer",
}  # fmt: skip
C_TYPES = {
    "i1": "s8", "i2": "s16", "i4": "s32", "i8": "s64", "u1": "u8", "u2": "u16", "u4": "u32",
    "u8": "u64", "b1": "u8",
}  # fmt: skip


@dataclass
class Needs:
    """What the C text must have beside the hooks."""

    block: bool = False
    """The VA block that faulted: a kprobe tells."""
    migrates: bool = False
    layers: bool = False
    activates: bool = False
    """How many chunks were allocated: the object counts them."""
    lost: bool = False
    """Functions of the policy's own: whether one left an array."""

    def add(self, other: Needs) -> None:
        """What a part needs."""
        self.block |= other.block
        self.migrates |= other.migrates
        self.layers |= other.layers
        self.activates |= other.activates
        self.lost |= other.lost


class Called(Protocol):
    """Functions of the policy's own."""

    hook: str
    """The hook that is written."""

    def call(self, scope: Scope, node: ast.Call, f: Any) -> str: ...


@dataclass(frozen=True)
class Sizes:
    """How many chunks and VA blocks the emitted tables have room for."""

    chunks: int
    blocks: int


@dataclass
class Scope:
    """One hook while it is written."""

    where: Callable[[ast.AST], str]
    """``mine.py, line 12``."""
    parameters: Mapping[str, str]
    """Python's name -> what it is: ``s``, ``d``, ``block``, ``page``, ``region``, ``chunk``, .."""
    state: Mapping[str, np.ndarray]
    constants: Mapping[str, Any]
    """Globals of the hook."""
    needs: Needs
    sizes: Sizes
    bounds: Mapping[tuple[str, int], int]
    """Elements of the state that no hook writes: what they hold."""
    calls: Called
    helper: bool = False
    """Whether it is a function that a hook calls."""
    local: set[str] = field(default_factory=set)
    given: frozenset[str] = frozenset()
    """Of these, the ones that are handed over."""
    arrays: dict[str, str] = field(default_factory=dict)
    """Other names of fields of the state."""
    fixed: dict[str, int] = field(default_factory=dict)
    """Locals that hold one constant."""

    def refuse(self, node: ast.AST, why: str) -> InputError:
        """The error for a place."""
        return InputError(f"{self.where(node)}: {why}")

    def means(self, node: ast.AST, what: str) -> bool:
        """Whether a node is the parameter ``what``."""
        return isinstance(node, ast.Name) and self.parameters.get(node.id) == what

    def lost(self) -> None:
        """A function is called that may leave an array."""
        self.needs.lost = True

    @property
    def at(self) -> str:
        """What checks an index."""
        return "AT_IN" if self.helper else "AT"

    def constant(self, node: ast.AST) -> int | None:
        """The whole number that an expression is at all times, None."""
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return int(node.value)
        if isinstance(node, ast.Name) and node.id not in self.local | set(self.parameters):
            value = self.constants.get(node.id)
            if isinstance(value, int | np.integer):
                return int(value)
            return None
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = self.constant(node.operand)
            return -inner if inner is not None else None
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "len":
            return self._length(node.args[0]) if len(node.args) == 1 else None
        if isinstance(node, ast.BinOp):
            return self._folded(node)
        return None

    def _length(self, node: ast.AST) -> int | None:
        """Of a field of the state, or of one of the driver's lists."""
        name = self.array(node)
        if name is not None:
            return len(self.state[name])
        if isinstance(node, ast.Attribute) and self.means(node.value, "d"):
            n = self.sizes
            return {
                "next": n.chunks + 1, "prev": n.chunks + 1, "block_of": n.chunks,
                "chunk_of": n.blocks,
            }.get(node.attr)  # fmt: skip
        return None

    def _folded(self, node: ast.BinOp) -> int | None:
        b = self.constant(node.right)
        if isinstance(node.op, ast.Mod) and b == 1:
            return 0  # whatever is divided
        a = self.constant(node.left)
        if a is None or b is None:
            return None
        if type(node.op) in (ast.Add, ast.Sub, ast.Mult):
            return {ast.Add: a + b, ast.Sub: a - b, ast.Mult: a * b}[type(node.op)]
        if type(node.op) in (ast.FloorDiv, ast.Mod) and b != 0:
            return a // b if isinstance(node.op, ast.FloorDiv) else a % b
        return None

    def most(self, node: ast.AST) -> int | None:
        """A number that an expression never exceeds, None: what the verifier has a loop end by."""
        fixed = self.constant(node)
        if fixed is not None:
            return fixed
        if isinstance(node, ast.Call) and _called(self, node) == "min":
            found = [m for m in map(self.most, node.args) if m is not None]
            return min(found) if found else None
        if isinstance(node, ast.BinOp) and type(node.op) in (ast.Add, ast.Sub):
            left, right = self.most(node.left), self.constant(node.right)
            if left is not None and right is not None:
                return left + right if isinstance(node.op, ast.Add) else left - right
        if isinstance(node, ast.Subscript):
            name, at = self.array(node.value), self.constant(node.slice)
            return self.bounds.get((name, at)) if name is not None and at is not None else None
        return None

    def array(self, node: ast.AST) -> str | None:
        """The field of the state that a node is, None."""
        if isinstance(node, ast.Name):
            return self.arrays.get(node.id)
        if isinstance(node, ast.Attribute) and self.means(node.value, "s"):
            if node.attr not in self.state:
                raise self.refuse(node, f"the state has no field {node.attr!r}")
            return node.attr
        return None


def number(value: int) -> str:
    """A constant, also the least one."""
    return f"{value}LL" if value >= 0 else f"(-{-value - 1}LL - 1)"


def term(scope: Scope, node: ast.AST) -> str:
    """An expression in C, of type s64. Raises `InputError`."""
    fixed = scope.constant(node)
    if fixed is not None:
        if not -(1 << 63) <= fixed < 1 << 63:
            raise scope.refuse(node, f"{fixed} has more than 64 bits")
        return number(fixed)
    if isinstance(node, ast.Name):
        return _name(scope, node)
    if isinstance(node, ast.Subscript):
        return _subscript(scope, node)
    if isinstance(node, ast.Call):
        return _call(scope, node)
    if isinstance(node, ast.BinOp):
        return _binary(scope, type(node.op), node, term(scope, node.left), term(scope, node.right))
    if isinstance(node, ast.UnaryOp):
        sign = {ast.USub: "-", ast.UAdd: "", ast.Not: "!", ast.Invert: "~"}[type(node.op)]
        return f"({sign}{term(scope, node.operand)})"
    if isinstance(node, ast.BoolOp):
        return _either(scope, node)
    if isinstance(node, ast.Compare):
        return _compare(scope, node)
    if isinstance(node, ast.IfExp):
        parts = (term(scope, n) for n in (node.test, node.body, node.orelse))
        return "({} ? {} : {})".format(*parts)
    if isinstance(node, ast.Constant) and isinstance(node.value, float):
        raise scope.refuse(node, f"{node.value}: the kernel has no floating point")
    raise scope.refuse(node, f"{ast.unparse(node)!r} has no form in C here")


def _either(scope: Scope, node: ast.BoolOp) -> str:
    """``and``, ``or``: of yes and no as in C, of other numbers the one that decides, as in Python."""
    parts = [term(scope, v) for v in node.values]
    if all(_is_yes_or_no(v) for v in node.values):
        return f"({(' && ' if isinstance(node.op, ast.And) else ' || ').join(parts)})"
    told = parts[-1]
    for part in parts[-2::-1]:
        chosen = f"{told} : o_" if isinstance(node.op, ast.And) else f"o_ : {told}"
        told = f"({{ s64 o_ = {part}; o_ ? {chosen}; }})"
    return told


def _is_yes_or_no(node: ast.AST) -> bool:
    if isinstance(node, ast.BoolOp):
        return all(_is_yes_or_no(v) for v in node.values)
    return isinstance(node, ast.Compare) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def _name(scope: Scope, node: ast.Name) -> str:
    what = scope.parameters.get(node.id)
    if node.id in scope.local:
        return f"v_{node.id}"
    if what is None:
        raise scope.refuse(node, f"{node.id!r} is no whole number")
    if what in ("s", "d", "region"):
        raise scope.refuse(node, f"{node.id!r} can only be read by its parts")
    if what == "block":
        scope.needs.block = True
    return f"v_{what}"


def binary(scope: Scope, op: type, node: ast.AST, a: str, b: str) -> str:
    """``a op b``; Python's division is towards less."""
    return _binary(scope, op, node, a, b)


def _binary(scope: Scope, op: type, node: ast.AST, a: str, b: str) -> str:
    if op in BINARY:
        return f"({a} {BINARY[op]} {b})"
    if op in DIVISION:
        return f"{DIVISION[op]}({a}, {b})"
    told = "the kernel has no floating point; use //" if op is ast.Div else "has no form in C here"
    raise scope.refuse(node, f"{ast.unparse(node)!r}: {told}")


def _compare(scope: Scope, node: ast.Compare) -> str:
    left, parts = term(scope, node.left), []
    for middle in node.comparators[:-1]:
        no_calls(scope, middle, "in the middle of a comparison")
    for op, right in zip(node.ops, node.comparators, strict=True):
        if type(op) not in COMPARED:
            raise scope.refuse(node, f"{ast.unparse(node)!r} has no form in C here")
        told = term(scope, right)
        parts.append(f"{left} {COMPARED[type(op)]} {told}")
        left = told
    return f"({' && '.join(parts)})"


def place(scope: Scope, node: ast.Subscript) -> str | None:
    """An element of the state that can be assigned to, None; the hook ends where there is none."""
    name = scope.array(node.value)
    if name is None:
        return None
    shape = scope.state[name].shape
    if len(shape) == 2:
        return _in_a_table(scope, node, name, shape)
    fixed, n = scope.constant(node.slice), shape[0]
    if fixed is not None:
        if not 0 <= fixed < n:
            raise scope.refuse(node, f"s.{name} has elements 0 to {n - 1}")
        return f"f_{name}[{fixed}]"
    if isinstance(node.slice, ast.Slice | ast.Tuple):
        raise scope.refuse(node, "one element at a time")
    return f"f_{name}[{scope.at}({term(scope, node.slice)}, {n})]"


def _in_a_table(scope: Scope, node: ast.Subscript, name: str, shape: tuple[int, ...]) -> str:
    """An element of a field with two dimensions, row by row in one array."""
    if not isinstance(node.slice, ast.Tuple) or len(node.slice.elts) != 2:
        raise scope.refuse(node, f"s.{name} has rows and columns: one element at a time")
    told = []
    for part, n in zip(node.slice.elts, shape, strict=True):
        fixed = scope.constant(part)
        if isinstance(part, ast.Slice):
            raise scope.refuse(node, "one element at a time")
        if fixed is not None and not 0 <= fixed < n:
            raise scope.refuse(node, f"s.{name} has {shape[0]} rows of {shape[1]} elements")
        told.append(str(fixed) if fixed is not None else f"{scope.at}({term(scope, part)}, {n})")
    return f"f_{name}[{told[0]} * {shape[1]} + {told[1]}]"


def no_calls(scope: Scope, node: ast.AST, where: str) -> None:
    """Refuse a call of a function of the policy's own where C would make it twice."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and own_function(scope, inner) is not None:
            raise scope.refuse(
                node, f"calls {ast.unparse(inner.func)} {where}: name its value first"
            )


def own_function(scope: Scope, node: ast.Call) -> Any:
    """The function of the policy's own that a call calls, None: of its file, or one it imports."""
    name = getattr(node.func, "id", "")
    value = None if name in scope.local else plain(scope.constants.get(name))
    if isinstance(value, FunctionType) and value.__module__ != base.__name__:
        return value
    return None


def _subscript(scope: Scope, node: ast.Subscript) -> str:
    found = place(scope, node)
    if found is not None:
        return f"(s64){found}"
    if scope.means(node.value, "region"):
        at = scope.constant(node.slice)
        if at not in REGION:
            raise scope.refuse(node, "a region has FIRST, OUTER, MAX_FIRST and MAX_OUTER")
        return f"(s64){REGION[at]}"
    if isinstance(node.value, ast.Attribute) and scope.means(node.value.value, "d"):
        return _driver(scope, node, node.value.attr)
    raise scope.refuse(node, f"{ast.unparse(node)!r}: arrays are fields of the state")


def _driver(scope: Scope, node: ast.Subscript, table: str) -> str:
    """What the driver tells: the time, the block of the chunk, the process, who goes next."""
    if table == "n" and scope.constant(node.slice) == base.NOW_NS:
        return "(s64)bpf_ktime_get_ns()"
    if table == "n" and scope.constant(node.slice) == base.ACTIVATES:
        scope.needs.activates = True
        return "(s64)activates"
    if table in ("next", "prev") and scope.calls.hook == "evict_prepare":
        at = scope.constant(node.slice)
        if at is None and isinstance(node.slice, ast.Name):
            at = scope.fixed.get(node.slice.id)
        if at != scope.sizes.chunks:
            raise scope.refuse(
                node, "of the list only its ends: d.next[len(d.next) - 1], d.prev[..]"
            )
        return f"end_of(list, {int(table == 'prev')})"
    chunk = "chunk" in scope.parameters.values()
    if table == "block_of" and scope.means(node.slice, "chunk"):
        return "block_number(block_of(chunk))"
    if table == "tenant_of":
        inner = node.slice
        of_chunk = (
            isinstance(inner, ast.Subscript)
            and isinstance(inner.value, ast.Attribute)
            and scope.means(inner.value.value, "d")
            and inner.value.attr == "block_of"
            and scope.means(inner.slice, "chunk")
        )
        if chunk and of_chunk:
            return "process_number(block_of(chunk))"
        if scope.means(inner, "block"):
            scope.needs.block = True
            return "process_number(now->block)"
    told = (
        "a program in the kernel sees d.n[NOW_NS], d.n[ACTIVATES], d.block_of[chunk], d.tenant_of[..] "
        "and, where somebody has to leave, the ends of the list"
    )
    raise scope.refuse(node, f"d.{table}: {told}")


def _call(scope: Scope, node: ast.Call) -> str:
    name = _called(scope, node)
    if name in ("min", "max") and len(node.args) == 2:
        return f"{name}_of({term(scope, node.args[0])}, {term(scope, node.args[1])})"
    if name == "abs" and len(node.args) == 1:
        return f"abs_of({term(scope, node.args[0])})"
    if name in ("int", "int64") and len(node.args) == 1:
        return term(scope, node.args[0])
    if name == "layer_of" and len(node.args) == 2:
        array = scope.array(node.args[0])
        if array is None:
            raise scope.refuse(node, "layer_of takes a field of the state")
        scope.needs.layers = True
        return f"layer_of(f_{array}, {len(scope.state[array])}, {term(scope, node.args[1])})"
    f = own_function(scope, node)
    if f is not None:
        return scope.calls.call(scope, node, f)
    raise scope.refuse(node, f"calls {ast.unparse(node.func)}, which has no form in C here")


def _called(scope: Scope, node: ast.Call) -> str:
    """What a call calls: a builtin, or a function of the contract under its own name."""
    if node.keywords:
        raise scope.refuse(node, "arguments by name have no form in C here")
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    name = getattr(node.func, "id", "")
    value = scope.constants.get(name)
    return getattr(value, "__name__", name) if callable(value) else name


called = _called
