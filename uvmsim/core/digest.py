"""A digest of everything that decides what a compiled function does: its bytecode and constants, and
those of every function it reaches, and every global value any of them reads.

Numba freezes globals when it compiles and looks at one file's time stamp when it loads from its disk
cache. A kernel with a policy's hooks in it is made of many files, users' own among them, so its cache
entry is named by this digest instead.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numba
import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

from uvmsim.core.globals_of import GlobalPath, global_paths, plain

STABLE = frozenset(
    {"numpy", "numba", "llvmlite", "math", "cmath", "operator", "builtins", "typing"}
)
"""Packages that change with their version, which is part of the digest, and not otherwise."""

Resolve = Callable[[FunctionType, GlobalPath], Any]
"""The value of a global of a function."""


class Digest:
    """One digest, fed value by value; a function that was fed before is named by its number."""

    def __init__(self, resolve: Resolve):
        self._resolve = resolve
        self._hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._keep: list[Any] = []
        """What `_seen` goes by id must live as long."""
        self.opaque: str | None = None
        """The first thing reached that could not be digested."""
        self._tell(sys.version_info[:2], numba.__version__, np.__version__, _linkers())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()[:24]

    def add(self, value: Any, whose: str) -> None:
        """Feed a value; ``whose`` names it where it cannot be digested."""
        value = plain(value)
        if isinstance(value, FunctionType) and not _stable(value):
            self._function(value)
        elif isinstance(value, CodeType):
            self._code(value, whose)
        elif isinstance(value, _Intrinsic):
            self._function(value._defn)
        elif isinstance(value, type):
            self._class(value, whose)
        elif isinstance(value, tuple | frozenset):
            self._items(value, whose)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._tell("array", value.dtype.str, value.shape)
            self._hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, np.generic) and not value.dtype.hasobject:
            self._tell("scalar", value.dtype.str, value.tobytes())
        elif value is None or isinstance(value, bool | int | float | complex | str | bytes | slice):
            self._tell(type(value).__name__, value)
        elif value is Ellipsis or isinstance(value, range):
            self._tell("value", value)
        elif _named(value):
            self._tell("name", *_named(value))
        else:
            self._cannot(whose, value)

    # ---- kinds ----------------------------------------------------------------------------------

    def _function(self, f: FunctionType) -> None:
        if id(f) in self._seen:
            self._tell("again", self._seen[id(f)])
            return
        self._seen[id(f)] = len(self._seen)
        self._keep.append(f)
        self._code(f.__code__, f.__qualname__)
        self.add(f.__defaults__ or (), f"a default of {f.__qualname__}")
        for name, value in sorted((f.__kwdefaults__ or {}).items()):
            self._tell(name)
            self.add(value, f"default {name} of {f.__qualname__}")
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            self._tell(name)
            self.add(cell.cell_contents, f"{name} in {f.__qualname__}")
        for path in global_paths(f):
            self._tell("global", *path)
            self.add(self._resolve(f, path), f"{'.'.join(path)} in {f.__qualname__}")

    def _code(self, code: CodeType, whose: str) -> None:
        self._tell("code", code.co_argcount, code.co_kwonlyargcount, code.co_flags)
        self._tell(*code.co_names, "|", *code.co_varnames, "|", *code.co_freevars)
        self._tell(code.co_code, code.co_exceptiontable)
        for const in code.co_consts:
            self.add(const, f"a constant of {whose}")

    def _class(self, cls: type, whose: str) -> None:
        self._tell("class", cls.__module__, cls.__qualname__)
        if issubclass(cls, np.generic) or cls.__module__.partition(".")[0] in STABLE:
            return
        if issubclass(cls, enum.Enum):
            for member in cls:
                self._tell(member.name)
                self.add(member.value, f"{cls.__qualname__}.{member.name}")
        elif issubclass(cls, tuple) and hasattr(cls, "_fields"):
            self._tell(*cls._fields)
        elif issubclass(cls, BaseException):
            pass
        else:
            self._cannot(whose, cls)

    def _items(self, items: Any, whose: str) -> None:
        if isinstance(items, frozenset):
            items = sorted(items, key=repr)
        else:
            self._tell("tuple", *getattr(items, "_fields", ()))
        self._tell(len(items))
        for item in items:
            self.add(item, whose)

    def _tell(self, *words: Any) -> None:
        self._hash.update(repr(words).encode())

    def _cannot(self, whose: str, value: Any) -> None:
        self.opaque = self.opaque or f"{whose} is a {type(value).__name__}"
        # Good for this process only, where the value lives as long as this digest's user.
        self._keep.append(value)
        self._tell("opaque", id(value))


@functools.cache
def _linkers() -> str:
    """How kernels are put together is part of what they are."""
    here = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in here)).hexdigest()


def _stable(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").partition(".")[0] in STABLE


def _named(value: Any) -> tuple[str, ...]:
    """What a value is called, where its name and its package's version say all there is to say."""
    if isinstance(value, ModuleType):
        return ()
    if isinstance(value, BuiltinFunctionType | MethodType):
        owner = getattr(value, "__self__", None)
        if isinstance(owner, ModuleType):
            return (owner.__name__, value.__name__)
        return (type(owner).__module__, value.__qualname__) if _stable(type(owner)) else ()
    if isinstance(value, np.ufunc):
        return ("ufunc", value.__name__)
    if isinstance(value, Dispatcher):
        return ()
    if isinstance(value, numba.types.Type):
        return ("numba type", str(value))
    if _stable(value) and hasattr(value, "__name__"):
        return (value.__module__, value.__name__)
    return ()


def layout(value: Any) -> Any:
    """The names and order of a state's fields, which compiled code has in it as numbers."""
    if isinstance(value, tuple):
        cls = type(value)
        names = getattr(cls, "_fields", ())
        return (cls.__module__, cls.__qualname__, names, tuple(layout(v) for v in value))
    return None


def found_again(state: Any) -> bool:
    """Whether another process finds a state's classes by their names: those of a notebook or a script
    (``__main__``) are new in each."""
    if not isinstance(state, tuple):
        return True
    cls = type(state)
    if cls is not tuple and getattr(sys.modules.get(cls.__module__), cls.__name__, None) is not cls:
        return False
    return cls.__module__ != "__main__" and all(found_again(part) for part in state)
