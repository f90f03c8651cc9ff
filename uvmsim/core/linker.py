"""Hooks put in the place of a template's own, in everything the template reaches.

A template is ordinary code: its hooks are ordinary functions that do nothing, its switches ordinary
constants, so it reads, type-checks and runs as it stands. Linking copies every function that reaches
one of them, down the whole call closure, with the globals that it shall find. Functions of users' own
files are copied too, compiled or not: their arrays are bounds-checked, and an edited helper is never
served from an older compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CellType, FunctionType, ModuleType
from typing import Any

from numba import njit
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target

from uvmsim.core.digest import STABLE, Digest
from uvmsim.core.globals_of import MISSING, OURS, GlobalPath, global_paths, lookup, plain
from uvmsim.core.jit import CHECKED_OPTIONS, INNER_OPTIONS, KERNEL_OPTIONS, inlined, kernel_part


class Linker:
    """What stands for what, and the functions made so far.

    ``swaps``: a template's function -> what is called instead. ``switches``: constants by name, for the
    functions of the template's own package. ``compiled``: False for plain Python throughout.
    ``inline``: whether copies of our own functions are put into their callers.
    """

    def __init__(
        self, template: FunctionType, swaps: Mapping[Callable, Callable],
        switches: Mapping[str, Any], compiled: bool, inline: bool = False,
    ):  # fmt: skip
        if compiled:
            cpu_target.typing_context.refresh()  # so that overloads are known
        self._home = template.__module__.rpartition(".")[0]
        self._template = template
        self._swaps = {id(plain(k)): v for k, v in swaps.items()}
        self._switches = dict(switches)
        self._compiled, self._inline = compiled, inline
        self._made: dict[int, Any] = {}
        self._name = ""
        self._alive: list[Any] = [*swaps, *swaps.values()]

    def digest(self) -> Digest:
        """Of the template as it would be linked now."""
        digest = Digest(self.resolve)
        digest.add(self._template, self._template.__name__)
        return digest

    def resolve(self, f: FunctionType, path: GlobalPath) -> Any:
        """The value ``f`` shall find under a global path."""
        name, *attributes = path
        at_home = (f.__module__ or "").rpartition(".")[0] == self._home
        if at_home and name in self._switches and name in f.__globals__:
            return self._switches[name]
        value = lookup(f, name)
        for attribute in attributes:
            value = getattr(value, attribute, MISSING)
        return self._swaps.get(id(plain(value)), value)

    def link(self, name: str) -> FunctionType:
        """The template under its own name with ``name`` added: a plain function whose globals are
        linked, ready to be compiled."""
        self._name = name
        return self._copy(self._template)

    # ---- copying --------------------------------------------------------------------------------

    def _build(self, value: Any) -> Any:
        """``value`` as linked code shall find it."""
        f = plain(value)
        if not isinstance(f, FunctionType) or _top(f) in STABLE:
            return value
        if id(f) not in self._made:
            self._alive.append(f)
            self._made[id(f)] = self._function(f, value)
        return self._made[id(f)]

    def _function(self, f: FunctionType, value: Any) -> Any:
        if not self._compiled:
            return self._copy(f) if self._changes(f, set()) else f
        if not isinstance(value, Dispatcher) and _overloaded(f):
            return value
        foreign = _top(f) not in OURS
        if isinstance(value, Dispatcher) and not foreign and not self._changes(f, set()):
            return value
        if foreign:
            own = value.targetoptions if isinstance(value, Dispatcher) else KERNEL_OPTIONS
            own = {k: v for k, v in own.items() if k not in ("nopython", "cache")}
            jit: Any = njit(**(own | INNER_OPTIONS | CHECKED_OPTIONS))
        else:
            into = self._inline or _into_its_caller(value)
            jit = inlined if into else kernel_part
        copy = self._copy(f, later=True)
        made = jit(copy)
        self._made[id(f)] = made  # before what it calls, which may be itself
        self._fill(copy, f)
        return made

    def _changes(self, f: FunctionType, seen: set[int]) -> bool:
        """Whether anything ``f`` reaches is not what it finds today."""
        if id(f) in seen:
            return False
        seen.add(id(f))
        for path in global_paths(f):
            found = lookup(f, path[0])
            for attribute in path[1:]:
                found = getattr(found, attribute, MISSING)
            value = self.resolve(f, path)
            if value is not found:
                return True
            inner = plain(value)
            if not isinstance(inner, FunctionType) or _top(inner) in STABLE:
                continue
            is_plain = inner is value
            if is_plain != (not self._compiled) and not (is_plain and _overloaded(inner)):
                return True
            if self._changes(inner, seen):
                return True
        return False

    def _copy(self, f: FunctionType, later: bool = False) -> FunctionType:
        cells = tuple(CellType(self._build(c.cell_contents)) for c in f.__closure__ or ())
        made = FunctionType(f.__code__, dict(f.__globals__), f.__name__, f.__defaults__, cells)
        made.__kwdefaults__ = f.__kwdefaults__
        # Machine code of two versions must never share a symbol: a linker would take either. And what
        # is loaded from disk imports the modules it names, which for a user's file may be gone.
        made.__qualname__ = f"{f.__qualname__}_{self._name}"
        made.__module__ = f.__module__ if _top(f) in OURS else __name__
        if not later:
            self._made[id(f)] = made
            self._fill(made, f)
        return made

    def _fill(self, copy: FunctionType, f: FunctionType) -> None:
        """Give the copy its globals."""
        for path in global_paths(f):
            value = self._build(self.resolve(f, path))
            if len(path) == 1:
                if value is not MISSING and path[0] in f.__globals__:
                    copy.__globals__[path[0]] = value
            elif path[0] in f.__globals__:
                _set_within(copy.__globals__, path, value)


def _set_within(scope: dict[str, Any], path: GlobalPath, value: Any) -> None:
    """Set an attribute of a module for one reader: in a copy of the module, if it differs."""
    name, *rest = path
    module = scope.get(name)
    if not isinstance(module, ModuleType) or module.__name__.partition(".")[0] in STABLE:
        return
    if len(rest) == 1 and getattr(module, rest[0], MISSING) is value:
        return
    copy = ModuleType(module.__name__)
    copy.__dict__.update(module.__dict__)
    scope[name] = copy
    if len(rest) == 1:
        copy.__dict__[rest[0]] = value
    else:
        _set_within(copy.__dict__, tuple(rest), value)


def _top(f: Any) -> str:
    return (getattr(f, "__module__", None) or "").partition(".")[0]


def _into_its_caller(value: Any) -> bool:
    """Whether a function asks to be put into its caller."""
    return isinstance(value, Dispatcher) and bool(value.targetoptions.get("forceinline"))


def _overloaded(f: FunctionType) -> bool:
    """Whether Numba knows the function by an overload, which stands for its Python code."""
    return cpu_target.typing_context._lookup_global(f) is not None
