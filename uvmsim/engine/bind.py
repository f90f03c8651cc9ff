"""Putting a policy's hooks into the kernel templates, and compiling the result.

A closure over jitted functions cannot be cached on disk by Numba (its cache key would contain the
functions' process-wide ids). A plain function whose *globals* are the hooks can. So a template is
copied with new globals, and its qualified name carries a digest of all source that takes part:
Numba's on-disk cache then holds one entry for each policy and forgets none when a policy is edited.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
from numba import njit

from uvmsim.jit import CHECKED, INNER, KERNEL, kernel_part
from uvmsim.memory import access_kernel, pool
from uvmsim.policies import lists
from uvmsim.policies.base import Eviction, Policy, Prefetch, in_use
from uvmsim.policies.registry import PolicySpec

HELPERS = {"in_use": kernel_part(in_use)}
"""Functions of the contract that hooks call."""

ALONE = {"in_use": kernel_part(access_kernel.never_in_use)}
"""The same where only one expert is accessed at a time."""


class NoPrefetch(Prefetch):
    """Stands in where a spec has no prefetcher."""


@functools.cache
def _library_digest() -> str:
    """Digest of all source that any bound kernel may inline."""
    h = hashlib.sha256(numba.__version__.encode())
    for folder in (Path(lists.__file__).parent, Path(pool.__file__).parent):
        for file in sorted(folder.glob("*.py")):
            h.update(file.read_bytes())
    return h.hexdigest()


def _digest(*classes: type) -> str:
    h = hashlib.sha256(_library_digest().encode())
    for cls in classes:
        h.update(f"{cls.__module__}.{cls.__qualname__}".encode())
        for base in cls.__mro__[:-1]:
            h.update(Path(inspect.getfile(base)).read_bytes())
    return h.hexdigest()[:16]


def with_globals(template: Any, extra: dict[str, Any], tag: str) -> FunctionType:
    """A copy of ``template`` that finds ``extra`` among its globals."""
    f = FunctionType(
        template.__code__, {**template.__globals__, **extra}, template.__name__,
        template.__defaults__, template.__closure__,
    )  # fmt: skip
    f.__qualname__ = f"{template.__name__}_{tag}"
    f.__module__ = template.__module__
    return f


def _hooks(eviction: type[Eviction], prefetch: type[Prefetch]) -> dict[str, Callable]:
    return {
        "eviction_on_event": eviction.on_event,
        "bypasses": eviction.bypasses,
        "on_access": eviction.on_access,
        "on_insert": eviction.on_insert,
        "on_evict": eviction.on_evict,
        "victim": eviction.victim,
        "prefetch_on_event": prefetch.on_event,
        "prefetch": prefetch.prefetch,
    }


@functools.cache
def _bound(
    eviction: type[Eviction], prefetch: type[Prefetch], compiled: bool, checked: bool
) -> Callable:
    hooks: dict[str, Any] = dict(_hooks(eviction, prefetch))
    tag = _digest(eviction, prefetch)
    bypasses = eviction.bypasses is not Eviction.bypasses
    used = {
        "SEES_EVENTS": bypasses
        or any(cls.on_event is not Policy.on_event for cls in (eviction, prefetch)),
        "BYPASSES": bypasses,
        "PREFETCHES": prefetch is not NoPrefetch,
    }
    if not compiled:
        hooks = {name: _uncompiled(f) for name, f in hooks.items()} | used
        hooks["take_slot"] = with_globals(pool.take_slot, hooks, tag)
        return with_globals(pool.plan_events, hooks, tag)
    jit = kernel_part
    hook_jit = _hook_jit(checked)
    tag += "_checked" if checked else ""
    jitted: dict[str, Any] = {name: hook_jit(_plain(f)) for name, f in hooks.items()}
    jitted |= used
    jitted["event_of"] = jit(pool.event_of)
    jitted["copy_beside"] = jit(pool.copy_beside)
    jitted["take_slot"] = jit(with_globals(pool.take_slot, jitted, tag))
    return njit(cache=True, **KERNEL)(with_globals(pool.plan_events, jitted, tag))


def _hook_jit(checked: bool) -> Any:
    return njit(**(INNER | KERNEL | CHECKED)) if checked else kernel_part


def names_used(f: Any, seen: set[int] | None = None) -> set[str]:
    """Names and string constants in a hook's code and in the functions it calls."""
    f = getattr(f, "py_func", f)
    seen = set() if seen is None else seen
    code = getattr(f, "__code__", None)
    if code is None or id(f) in seen:
        return set()
    seen.add(id(f))
    found = set(code.co_names) | {c for c in code.co_consts if isinstance(c, str)}
    for name in code.co_names:
        if name in f.__globals__:
            found |= names_used(f.__globals__[name], seen)
    return found


ACCESS_HOOKS = ("on_event", "on_access", "on_insert", "on_evict", "victim")


@functools.cache
def _read_by(eviction: type[Eviction]) -> frozenset[str]:
    return frozenset().union(*(names_used(getattr(eviction, name)) for name in ACCESS_HOOKS))


def reads_slots(eviction: type[Eviction]) -> bool:
    """Whether a hook looks at who is in which slot."""
    return bool(_read_by(eviction) & {"slot_of", "expert_in"})  # type: ignore[arg-type]


@functools.cache
def bind_access(eviction: type[Eviction], compiled: bool = True, checked: bool = False) -> Callable:
    """`uvmsim.memory.access_kernel.replay` with the policy's hooks; ``checked`` as in `bind`."""
    hooks: dict[str, Any] = {name: getattr(eviction, name) for name in ACCESS_HOOKS}
    tag = _digest(eviction)
    constants = {
        "SEES_EVENTS": eviction.on_event is not Policy.on_event,
        "READS_CLOCK": "clock" in _read_by(eviction),  # type: ignore[arg-type]
        "READS_SLOTS": reads_slots(eviction),
    }
    if not compiled:
        hooks = {name: _uncompiled(f) for name, f in hooks.items()}
        return with_globals(access_kernel.replay, hooks | constants, tag)
    hook_jit = _hook_jit(checked)
    tag += "_checked" if checked else ""
    jitted = {name: hook_jit(_plain(f, ALONE)) for name, f in hooks.items()}
    return njit(cache=True, **KERNEL)(with_globals(access_kernel.replay, jitted | constants, tag))


def _uncompiled(f: Any, made: dict[Any, Callable] | None = None) -> Callable:
    """The hook, and all it calls, in plain Python: a compiled helper without a wrapper for Python
    (`uvmsim.jit.kernel_part`) must never be called from there."""
    f, made = getattr(f, "py_func", f), {} if made is None else made
    if f in made:
        return made[f]
    names = [k for k in f.__code__.co_names if hasattr(f.__globals__.get(k), "py_func")]
    made[f] = plain = with_globals(f, {}, "hook") if names else f
    for name in names:
        plain.__globals__[name] = _uncompiled(plain.__globals__[name], made)
    return plain


def _plain(f: Callable, helpers: dict[str, Any] = HELPERS) -> Callable:
    """The hook with the contract's helpers in compiled form."""
    f = getattr(f, "py_func", f)
    extra = {k: v for k, v in helpers.items() if k in f.__code__.co_names}
    return with_globals(f, extra, "hook") if extra else f


def bind(spec: PolicySpec, compiled: bool = True) -> Callable:
    """`uvmsim.memory.pool.plan_events` with the policy's hooks; plain Python if not ``compiled``.

    Hooks of users' own files check the bounds of every array they touch.
    """
    prefetch = type(spec.prefetch) if spec.prefetch else NoPrefetch
    checked = bool(spec.files)
    return _bound(type(spec.eviction), prefetch, compiled, checked)  # type: ignore[arg-type]


def explain(err: Exception) -> str:
    """Numba's complaint in one line."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    telling = [x for x in lines if not x.startswith(("Failed in", "During", "File", "[", "-"))]
    return (telling or lines or [type(err).__name__])[0]
