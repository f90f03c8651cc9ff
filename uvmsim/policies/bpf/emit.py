"""A page policy in Python as C that clang compiles for the kernel.

The subset (docs/bpf.md): state of whole numbers in fixed arrays, bounded loops, the five actions.
Arrays become global variables, chunks and VA blocks get numbers from their addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import InputError
from uvmsim.policies.bpf.emit_calls import Calls
from uvmsim.policies.bpf.emit_hooks import Writer
from uvmsim.policies.bpf.emit_names import never_written, source_of
from uvmsim.policies.bpf.emit_terms import C_TYPES, Needs, Scope, Sizes, number
from uvmsim.policies.bpf.emit_text import (
    ACTIVATES,
    CURRENT,
    ENDS,
    FOOT,
    HEAD,
    HOOKS,
    LAYERS,
    NUMBERS,
    REQUESTS,
    Hook,
)
from uvmsim.policies.pages.base import PageContext, PagePolicy
from uvmsim.policies.pages.registry import HOOKS as ALL_HOOKS
from uvmsim.policies.pages.registry import PagePolicySpec, hooks_of

CHUNKS, BLOCKS, PROCESSES = 1 << 14, 1 << 16, 8
"""Numbers of chunks (32 GiB), VA blocks (128 GiB) and processes that emitted tables have room for."""
COUNTED = "block_activate"
"""The hook that counts allocations."""
LARGEST = 32 << 20
"""Bytes of state; the kernel keeps global variables in one map."""
HEADER = Path(__file__).parent / "uvm.h"


def emit(
    spec: PagePolicySpec, chunks: int = CHUNKS, blocks: int = BLOCKS, boundaries: Sequence[int] = ()
) -> str:
    """The C text of a policy. ``chunks``, ``blocks``: powers of two; ``boundaries``: as `PageContext`
    has them. Raises `InputError`, with file and line, for what is outside the subset."""
    if spec.prefetch is not spec.order:
        raise InputError(f"policy {spec.name}: give one program, not two joined by +")
    for what, n in (("chunks", chunks), ("blocks", blocks)):
        if n < 2 or n & (n - 1) or n > 1 << 20:
            raise InputError(f"{n}: a power of two, 2 to 1048576", argument=what)
    policy = spec.prefetch
    cls = type(policy)
    if getattr(cls, "object", None) is not None:
        raise InputError(f"policy {spec.name}: is compiled already")
    given = np.array(boundaries or (0,), np.int64)
    state = _state(spec.name, policy, PageContext(blocks, chunks, PROCESSES, given, 0))
    needs, parts = Needs(), {}
    wanted = hooks_of(cls)
    sizes, bounds = (
        Sizes(chunks, blocks),
        never_written((getattr(cls, h) for h in wanted), state),
    )
    for name in ALL_HOOKS:
        if name in wanted:
            if name not in HOOKS:
                raise InputError(f"{_place(getattr(cls, name))}: {name} has no form in C here")
            parts[name] = _hook(getattr(cls, name), HOOKS[name], state, needs, sizes, bounds)
    if needs.activates:
        own = HOOKS[COUNTED]
        opening = f"{own.opening}\n"
        text = parts.get(COUNTED, f"{opening}\treturn 0;\n}}")
        parts[COUNTED] = text.replace(opening, f"{opening}\tactivates += 1;\n")
    return _whole(spec, policy, state, needs, parts, sizes)


def _state(name: str, policy: PagePolicy, ctx: PageContext) -> dict[str, np.ndarray]:
    """Fields of the state, each an array of whole numbers in one or two dimensions."""
    made: Any = policy.state(ctx)
    found: dict[str, np.ndarray] = {}
    for key in getattr(made, "_fields", ()):
        value = getattr(made, key)
        kind = f"{value.dtype.kind}{value.dtype.itemsize}" if isinstance(value, np.ndarray) else ""
        if kind not in C_TYPES or value.ndim not in (1, 2) or not value.size:
            told = "the kernel has no floating point" if kind[:1] == "f" else "not in the subset"
            raise InputError(
                f"policy {name}, state(): {key} must be an array of whole numbers in one or two "
                f"dimensions ({told})"
            )
        found[key] = value
    if sum(v.nbytes for v in found.values()) > LARGEST:
        raise InputError(
            f"policy {name}, state(): more than {LARGEST >> 20} MiB; give less `chunks`"
        )
    return found


def _place(f: Any) -> str:
    code = f.__code__
    return f"{Path(code.co_filename).name}, line {code.co_firstlineno}"


def _hook(
    f: Any, hook: Hook, state: dict[str, np.ndarray], needs: Needs, sizes: Sizes,
    bounds: dict[tuple[str, int], int],
) -> str:  # fmt: skip
    """One hook as a C function, after the functions that it calls."""
    tree, where = source_of(f)
    names = [a.arg for a in tree.args.args]
    parameters = dict(zip(names, hook.parameters, strict=True))
    own, calls = Needs(), Calls(hook.name, lambda scope, body: Writer(scope).body(body))
    scope = Scope(where, parameters, state, dict(f.__globals__), own, sizes, bounds, calls)
    body = Writer(scope).body(tree.body)
    needs.add(own)
    head = hook.head
    if own.block:
        head += hook.current
    if own.lost:
        head += "\ts64 lost_ = 0, *lost = &lost_;\n"
    lines = [*hook.opening.splitlines(), *head.splitlines(), *body, "\treturn 0;", "}"]
    return "\n\n".join([*calls.texts, "\n".join(lines)])


def _whole(
    spec: PagePolicySpec, policy: PagePolicy, state: dict[str, np.ndarray], needs: Needs,
    parts: dict[str, str], sizes: Sizes,
) -> str:  # fmt: skip
    """The file."""
    summary = (
        (type(policy).__doc__ or "A page policy.").strip().splitlines()[0].replace("*/", "* /")
    )
    name = spec.name.rpartition("/")[2].replace("*/", "* /")
    text = [f"/* {name}: {summary}\n * Written by `uvmsim bpf emit`; see docs/bpf.md. */"]
    text.append(HEADER.read_text(encoding="utf-8").rstrip())
    text.append(HEAD.format(chunks=sizes.chunks, blocks=sizes.blocks, processes=PROCESSES))
    text.append(NUMBERS)
    text += [_array(key, value) for key, value in state.items()]
    if needs.layers:
        text.append(LAYERS)
    if needs.block:
        text.append(CURRENT)
    if needs.migrates:
        text.append(REQUESTS)
    if needs.activates:
        text.append(ACTIVATES)
    if "evict_prepare" in parts:
        text.append(ENDS)
    text += [parts[h] for h in ALL_HOOKS if h in parts]
    members = [f"\t.{HOOKS[h].member} = (void *){h}," for h in ALL_HOOKS if h in parts]
    text.append(FOOT.format(members="\n".join(members)))
    return "\n\n".join(text) + "\n"


def _array(name: str, value: np.ndarray) -> str:
    """A field of the state as a global variable that begins as the state does."""
    kind = C_TYPES[f"{value.dtype.kind}{value.dtype.itemsize}"]
    numbers = [int(x) for x in value.flat]
    runs: list[str] = []
    at = 0
    while at < len(numbers):
        end = at
        while end < len(numbers) and numbers[end] == numbers[at]:
            end += 1
        if numbers[at]:
            place = f"[{at}]" if end == at + 1 else f"[{at} ... {end - 1}]"
            runs.append(f"{place} = {number(numbers[at])}")
        at = end
    told = f" = {{ {', '.join(runs)} }}" if runs else ""
    return f"volatile {kind} f_{name}[{len(numbers)}]{told};"
