"""The binder: a template and what to put into it, in; a compiled kernel, out.

One for all kernels with hooks: the expert pool, plain sequences of ids, the paging driver.

A closure over compiled functions cannot be cached on disk by Numba; a plain function whose *globals*
are those functions can. So a template is copied with new globals (`uvmsim.core.linker`) under a name
that carries the digest of all that takes part (`uvmsim.core.digest`): the cache holds one entry for
each version of each policy, and none serves another's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numba import njit

from traces.jit import compiled as cached
from uvmsim.core.digest import found_again, layout
from uvmsim.core.jit import KERNEL_OPTIONS
from uvmsim.core.linker import Linker


@dataclass(frozen=True)
class Bound:
    """A template with its hooks in place."""

    run: Callable[..., Any]
    """Takes what the template takes."""
    note: str | None = None
    """Why it is compiled anew in each process, where it is."""
    keep: Any = None
    """Whatever the kernel's identity rests on."""


_bound: dict[str, Bound] = {}
"""By digest: what this process has bound."""
_lock = threading.Lock()
"""Numba's registries are not made for several threads at once."""


def bind(
    template: Callable[..., Any],
    swaps: Mapping[Callable[..., Any], Callable[..., Any]],
    switches: Mapping[str, Any] | None = None,
    *,
    states: tuple[Any, ...] = (),
    compiled: bool = True,
    inline: bool = False,
) -> Bound:
    """``template`` with functions of it replaced by ``swaps`` and constants of its package by
    ``switches``.

    ``states``: what the hooks keep between calls, whose fields' order is compiled in. ``compiled``:
    False for plain Python throughout. ``inline``: whether copies of our own functions are put into
    their callers: a state of fifty arrays is 4 kB to hand over, which a learned policy's victim pays
    three times. Nothing is compiled before the first call; Numba's errors come from there.
    """
    with _lock:
        return _bind(template, swaps, switches or {}, states, compiled, inline)


def _bind(
    template: Any, swaps: Mapping[Callable[..., Any], Callable[..., Any]],
    switches: Mapping[str, Any], states: tuple[Any, ...], compiled: bool, inline: bool,
) -> Bound:  # fmt: skip
    linker = Linker(template, swaps, switches, compiled, inline)
    digest = linker.digest()
    digest.add(repr((compiled, inline, [layout(s) for s in states])), "the states")
    name = digest.hexdigest()
    if name not in _bound:
        plain = linker.link(name)
        if not compiled:
            _bound[name] = Bound(plain, keep=digest)
        elif digest.opaque is None and all(found_again(s) for s in states):
            _bound[name] = Bound(cached(**KERNEL_OPTIONS)(plain), keep=digest)
        elif digest.opaque is None:  # a notebook's class: a kept kernel would never be found again
            _bound[name] = Bound(njit(**KERNEL_OPTIONS)(plain), keep=digest)
        else:
            note = f"compiled anew in each process: {digest.opaque}, whose content cannot be told"
            _bound[name] = Bound(njit(**KERNEL_OPTIONS)(plain), note, digest)
    return _bound[name]


def explain(err: Exception) -> str:
    """Numba's complaint in one line."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    if any("Cannot modify readonly array" in line for line in lines):
        return (
            f"{_place(lines)}writes to an array that hooks may only read; keep your own in state()"
        )
    telling = [x for x in lines if not x.startswith(("Failed in", "During", "File", "[", "-"))]
    return (telling or lines or [type(err).__name__])[0]


def is_refusal(err: Exception) -> bool:
    """Whether hooks do what they must not, rather than what Numba cannot compile: plain Python would
    be no way out."""
    return "Cannot modify readonly array" in str(err)


def _place(lines: list[str]) -> str:
    """File and line of the innermost statement that Numba names."""
    named = [x for x in lines if x.startswith('File "') and ", line " in x]
    if not named:
        return "a hook "
    file, _, line = named[0].removeprefix('File "').rstrip(":").partition('", line ')
    return f"line {line} of {file.rpartition('/')[2]} "
