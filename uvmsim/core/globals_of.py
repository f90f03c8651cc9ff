"""What a function reads besides its arguments: the globals its bytecode names, and where a global is a
module, the attributes of it."""

from __future__ import annotations

import builtins
import dis
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

GlobalPath = tuple[str, ...]
"""A global's name, and the attributes taken from it while the value is a module."""


def codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions, lambdas and comprehensions inside it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from codes(const)


OURS = frozenset({"uvmsim", "traces", "replay"})
"""Packages whose code does not change while a process runs."""

_known: dict[CodeType, list[GlobalPath]] = {}


def global_paths(f: FunctionType) -> list[GlobalPath]:
    """Every global that ``f`` reads, as the path that leads to a value that is no module; in order of
    first appearance. A module that is used as a value ends its path."""
    if (f.__module__ or "").partition(".")[0] not in OURS:
        return _global_paths(f)
    if f.__code__ not in _known:
        _known[f.__code__] = _global_paths(f)
    return _known[f.__code__]


def _global_paths(f: FunctionType) -> list[GlobalPath]:
    found: dict[GlobalPath, None] = {}
    for code in codes(f.__code__):
        instructions = list(dis.get_instructions(code))
        for at, step in enumerate(instructions):
            if step.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
                continue
            path: GlobalPath = (step.argval,)
            value = lookup(f, step.argval)
            for after in instructions[at + 1 :]:
                is_attribute = after.opname in ("LOAD_ATTR", "LOAD_METHOD")
                if not (isinstance(value, ModuleType) and is_attribute):
                    break
                path = (*path, after.argval)
                value = getattr(value, after.argval, MISSING)
            found[path] = None
    return list(found)


class Missing:
    """A name without a value."""


MISSING = Missing()


def lookup(f: FunctionType, name: str) -> Any:
    """A global of ``f`` by name, or the builtin of that name."""
    return f.__globals__.get(name, getattr(builtins, name, MISSING))


def plain(f: Any) -> Any:
    """The Python function of a compiled one; anything else as it is."""
    return getattr(f, "py_func", f)
