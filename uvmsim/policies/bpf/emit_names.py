"""A hook's source: what its names stand for, and which fields of the state are written by none."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from uvmsim.core.globals_of import plain

READERS = frozenset({"len", "layer_of"})
"""Calls that write no field which they are given."""
FEW = 64
"""Elements of a field of parameters."""


def source_of(f: Any) -> tuple[ast.FunctionDef, Callable[[ast.AST], str]]:
    """The definition of a function, and what tells the file and line of a part of it."""
    file, first = Path(f.__code__.co_filename).name, f.__code__.co_firstlineno
    tree = ast.parse(textwrap.dedent(inspect.getsource(f))).body[0]
    assert isinstance(tree, ast.FunctionDef)

    def where(node: ast.AST) -> str:
        return f"{file}, line {first + getattr(node, 'lineno', 1) - 1}"

    return tree, where


def assigned(statements: Iterable[ast.AST]) -> dict[str, list[ast.expr | None]]:
    """By name, what is assigned to it; None: something else than an expression's value (a loop's)."""
    found: dict[str, list[ast.expr | None]] = {}
    for node in (n for s in statements for n in ast.walk(s)):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for name, value in _pairs(target, node.value):
                    found.setdefault(name, []).append(value)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For) and isinstance(
            node.target, ast.Name
        ):
            found.setdefault(node.target.id, []).append(None)
    return found


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for t, v in zip(target.elts, value.elts, strict=False):
            yield from _pairs(t, v)
    elif isinstance(target, ast.Name):
        yield target.id, value


def never_written(
    hooks: Iterable[Any], state: Mapping[str, np.ndarray]
) -> dict[tuple[str, int], int]:
    """What the elements of those fields hold that no hook writes, nor any function that it calls with
    them. ``hooks``: functions, whose first argument is the state."""
    written: set[str] = set()
    seen: set[tuple[Any, int]] = set()
    for f in hooks:
        written |= _written(f, 0, seen)
    return {
        (key, i): int(x)
        for key, value in state.items() if key not in written and value.ndim == 1 and len(value) <= FEW
        for i, x in enumerate(value)
    }  # fmt: skip


def _written(f: Any, place: int, seen: set[tuple[Any, int]]) -> set[str]:
    """Fields that a function may write whose argument ``place`` is the state."""
    if (f, place) in seen:
        return set()
    seen.add((f, place))
    tree, _ = source_of(f)
    if place >= len(tree.args.args):
        return set()
    state = tree.args.args[place].arg
    names = {
        name: {v.attr for v in values if isinstance(v, ast.Attribute)}
        for name, values in assigned([tree]).items()
    }
    written: set[str] = set()
    for node in ast.walk(tree):
        held: list[ast.expr] = []
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            held = [node.value]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") not in READERS:
            held = node.args
            own = plain(f.__globals__.get(getattr(node.func, "id", "")))
            for i, part in enumerate(node.args):
                whole = isinstance(part, ast.Name) and part.id == state
                if whole and isinstance(own, FunctionType):
                    written |= _written(own, i, seen)
        for part in held:
            if isinstance(part, ast.Attribute):
                written.add(part.attr)
            elif isinstance(part, ast.Name):
                written |= names.get(part.id, set())
    return written
