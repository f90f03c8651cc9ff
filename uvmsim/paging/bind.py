"""The paging driver with a policy's hooks in it."""

from __future__ import annotations

from typing import Any

from uvmsim.core.bind import Bound
from uvmsim.core.bind import bind as put_into
from uvmsim.paging import driver, hooks
from uvmsim.policies.pages.base import PagePolicy
from uvmsim.policies.pages.registry import (
    HOOKS,
    ORDER_HOOKS,
    PREFETCH_HOOKS,
    WORK_HOOKS,
    hooks_of,
)


def bind(
    prefetch: type[PagePolicy], order: type[PagePolicy], records: bool,
    given: tuple[Any, ...] = (),
) -> Bound:  # fmt: skip
    """`uvmsim.paging.driver.run_kernels` with the prefetch hooks of one policy and the list hooks
    of another (or the same one). ``records``: write the program. ``given``: what it will be called
    with, tables, states, kernels."""
    works = bool(set(hooks_of(order)) & set(WORK_HOOKS))
    owner = dict.fromkeys(PREFETCH_HOOKS, prefetch) | dict.fromkeys(ORDER_HOOKS, order)
    owner |= dict.fromkeys(WORK_HOOKS, order if works else prefetch)
    swaps = {getattr(hooks, name): getattr(owner[name], name) for name in HOOKS}
    switches = {
        "HAS_PREFETCH": bool(set(hooks_of(prefetch)) & set(PREFETCH_HOOKS)),
        "HAS_ORDER": bool(set(hooks_of(order)) & set(ORDER_HOOKS)),
        "MIGRATES": prefetch.migrates or order.migrates,
        "WORK_OF_ORDER": works,
        "RECORDS": records,
    }
    return put_into(driver.run_kernels, swaps, switches, states=given)
