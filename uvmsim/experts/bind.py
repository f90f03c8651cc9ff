"""The expert pool's kernel, and that for plain sequences of ids, with a policy's hooks in them."""

from __future__ import annotations

from typing import Any

from uvmsim.core.bind import Bound
from uvmsim.core.bind import bind as put_into
from uvmsim.experts import access_kernel, hooks, pool, ram_kernel
from uvmsim.policies import window
from uvmsim.policies.base import READABLE, Eviction, Policy, Prefetch, in_use, pool_of
from uvmsim.policies.registry import PolicySpec, chooses

EVICTION_HOOKS = ("bypasses", "on_miss", "on_access", "on_insert", "on_evict", "victim")


class NoPrefetch(Prefetch):
    """Stands in where a spec has no prefetcher."""


def bind(
    spec: PolicySpec,
    states: tuple[Any, ...] = (),
    compiled: bool = True,
    *,
    spare: bool = False,
    splits: bool = False,
) -> Bound:
    """`uvmsim.experts.pool.plan_events` with the policy's hooks, whose ``states`` it will be called
    with; plain Python if not ``compiled``. ``spare``: there are scratch places; ``splits``: the
    CPU takes its share of the misses."""
    eviction, prefetch = type(spec.eviction), type(spec.prefetch or NoPrefetch())
    bypasses = eviction.bypasses is not Eviction.bypasses
    fetching = {hooks.prefetch_on_event: prefetch.on_event, hooks.prefetch: prefetch.prefetch}
    windowed = spec.prefetch is not None and bool(spec.prefetch.window)
    if windowed:
        fetching = {
            hooks.prefetch_on_event: window.on_event,
            hooks.prefetch: window.prefetch,
            window.inner_on_event: prefetch.on_event,
            window.inner_prefetch: prefetch.prefetch,
        }
    swaps = _swaps(eviction) | fetching
    switches = {
        "SEES_EVENTS": bypasses
        or windowed
        or any(cls.on_event is not Policy.on_event for cls in (eviction, prefetch)),
        "BYPASSES": bypasses,
        "PREFETCHES": spec.prefetch is not None,
        "CHOOSES": splits or chooses(spec),
        "OFFERS": spec.eviction.bypass,
        "SPARE": spare,
        "SPLITS": splits,
    }
    return put_into(
        pool.plan_events, swaps, switches, states=states, compiled=compiled, inline=True
    )


def bind_access(
    eviction: type[Eviction], states: tuple[Any, ...] = (), compiled: bool = True
) -> Bound:
    """`uvmsim.experts.access_kernel.replay` with the policy's hooks, as `bind`."""
    swaps = _swaps(eviction) | {
        in_use: access_kernel.never_in_use,
        pool_of: access_kernel.only_pool,
    }
    reads = read_by(eviction)
    switches = {
        "SEES_EVENTS": eviction.on_event is not Policy.on_event,
        "READS_CLOCK": "clock" in reads,
        "READS_SLOTS": "slots" in reads,
    }
    return put_into(
        access_kernel.replay, swaps, switches, states=states, compiled=compiled, inline=True
    )


def bind_ram(
    eviction: type[Eviction], states: tuple[Any, ...] = (), compiled: bool = True
) -> Bound:
    """`uvmsim.experts.ram_kernel.serve` with the policy's hooks, as `bind`."""
    swaps = _swaps(eviction) | {
        in_use: access_kernel.never_in_use,
        pool_of: access_kernel.only_pool,
    }
    switches = {"SEES_EVENTS": eviction.on_event is not Policy.on_event}
    return put_into(
        ram_kernel.serve, swaps, switches, states=states, compiled=compiled, inline=True
    )


def read_by(policy: type[Policy]) -> frozenset[str]:
    """`Policy.reads` as this very class declares it; everything, where it does not: what is true of a
    class need not be of one derived from it."""
    return vars(policy).get("reads", READABLE)


def _swaps(eviction: type[Eviction]) -> dict[Any, Any]:
    named = {getattr(hooks, name): getattr(eviction, name) for name in EVICTION_HOOKS}
    return named | {hooks.eviction_on_event: eviction.on_event}
