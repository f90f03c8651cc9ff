"""A window on what a prefetcher has under way: bytes fetched and not used yet, adapted to how many are.

For any prefetcher (its parameter ``window``). What it asks for beyond the window is not fetched. Of
what it fetched, that which is asked for by the router is *used*, that which loses its slot before is
not. Each time an eighth of the start (a quantum) has been found out, the window grows by a quantum if
at least half of those bytes were used, and shrinks by one if not, down to a quarter of the start: the
sizes of gpu_ext's governor for MoE-Infinity (512 MiB to start, quantum 64, floor 128).

`uvmsim.experts.bind` puts these hooks around the prefetcher's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from traces.errors import InputError
from uvmsim.core.units import parse_bytes
from uvmsim.policies.base import Context, Event, Pool, Prefetch

QUANTUM, FLOOR = 8, 4
"""Parts of the window at the start."""
OPEN, WINDOW, USED, UNUSED, STEP, LEAST = range(6)
"""Places in ``at``: bytes fetched and not found out, the window, bytes found out since it last moved,
a quantum, the floor."""


class WindowState(NamedTuple):
    """The prefetcher's state, and: asked: int32 [n_total], the first ``n[0]`` are fetched and not found
    out; waits: bool [n_total], whether an expert is among them; used: bool [n_total], those that the
    router just asked for; size: int64 [layers]; at: int64 [6], see the places above; wanted: int32,
    what the prefetcher asks for."""

    inner: Any
    asked: np.ndarray
    n: np.ndarray
    waits: np.ndarray
    used: np.ndarray
    size: np.ndarray
    at: np.ndarray
    wanted: np.ndarray


def state_of(policy: Prefetch, ctx: Context) -> Any:
    """The state of a prefetcher's hooks as `uvmsim.experts.bind` binds them. Raises `InputError`."""
    if not policy.window:
        return policy.state(ctx)
    try:
        start = parse_bytes(policy.window)
    except InputError as err:
        raise InputError(f"policy {policy.name}: window={policy.window}: {err}") from None
    if start < QUANTUM:
        raise InputError(
            f"policy {policy.name}: window={policy.window}: give a size such as 512MiB"
        )
    at = np.array([0, start, 0, 0, start // QUANTUM, start // FLOOR], np.int64)
    return WindowState(
        policy.state(ctx), np.zeros(ctx.n_total, np.int32), np.zeros(1, np.int64),
        np.zeros(ctx.n_total, np.bool_), np.zeros(ctx.n_total, np.bool_),
        ctx.expert_bytes.astype(np.int64), at,
        np.zeros(policy.limit(ctx) + ctx.n_total + 1, np.int32),
    )  # fmt: skip


def inner_on_event(s: Any, pool: Pool, ev: Event) -> None:
    """The prefetcher's own, once bound."""


def inner_prefetch(s: Any, pool: Pool, ev: Event, out: np.ndarray) -> int:
    """The same."""
    return 0


def on_event(s: Any, pool: Pool, ev: Event) -> None:
    """Find out what became of what was fetched; move the window."""
    at = s.at
    for j in range(len(ev.experts)):
        s.used[ev.experts[j]] = True
    kept = 0
    for j in range(s.n[0]):
        e = s.asked[j]
        size = s.size[pool.layer_of[e]]
        if s.used[e]:
            at[USED] += size
        elif pool.slot_of[e] < 0:
            at[UNUSED] += size
        else:
            s.asked[kept] = e
            kept += 1
            continue
        at[OPEN] -= size
        s.waits[e] = False
    s.n[0] = kept
    for j in range(len(ev.experts)):
        s.used[ev.experts[j]] = False
    if at[USED] + at[UNUSED] >= at[STEP]:
        if 2 * at[USED] >= at[USED] + at[UNUSED]:
            at[WINDOW] += at[STEP]
        else:
            at[WINDOW] = max(at[LEAST], at[WINDOW] - at[STEP])
        at[USED] = 0
        at[UNUSED] = 0
    inner_on_event(s.inner, pool, ev)


def prefetch(s: Any, pool: Pool, ev: Event, out: np.ndarray) -> int:
    """What the prefetcher wants, as far as the window goes; what is there already stays as it was."""
    n = inner_prefetch(s.inner, pool, ev, s.wanted)
    found = 0
    for j in range(n):
        e = s.wanted[j]
        # One that waits found no slot, or is asked for twice.
        if 0 <= e < pool.slot_of.size and pool.slot_of[e] < 0 and not s.waits[e]:
            size = s.size[pool.layer_of[e]]
            if s.at[OPEN] + size > s.at[WINDOW]:
                continue
            s.at[OPEN] += size
            s.waits[e] = True
            s.asked[s.n[0]] = e
            s.n[0] += 1
        out[found] = e
        found += 1
    return found
