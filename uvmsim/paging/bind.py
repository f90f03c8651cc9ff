"""Putting a page policy's hooks into the driver; see `uvmsim.engine.bind` for why this way."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit

from uvmsim.engine.bind import with_globals
from uvmsim.jit import CHECKED, INNER, KERNEL, kernel_part
from uvmsim.paging import driver, faults, frames, regions
from uvmsim.policies.pages import base
from uvmsim.policies.pages.base import PagePolicy
from uvmsim.policies.pages.registry import ORDER_HOOKS, PREFETCH_HOOKS, hooks_of

ACTIONS = ("set_region", "move_head", "move_tail", "migrate", "layer_of")
"""Functions of the contract that hooks call."""
PARTS = (
    driver.row, faults.is_remote, faults.missing_from, faults.next_missing, faults.fetch,
    regions.prefetch_mask, frames.unlink, frames.to_tail, frames.vacate, frames.take_chunk,
    frames.release, frames.make_resident, driver.way_out_ns, driver.way_in_ns, driver.transfer,
    driver.service, driver.migrate_ahead, driver.await_migrations, driver.run_wave,
    driver.move_range,
)  # fmt: skip
"""Functions of the driver in an order in which each only calls those before it."""


@functools.cache
def _actions() -> dict[str, Any]:
    return {name: kernel_part(getattr(base, name)) for name in ACTIONS}


def _hook(f: Callable, checked: bool) -> Any:
    f = getattr(f, "py_func", f)
    extra = {k: v for k, v in _actions().items() if k in f.__code__.co_names}
    plain = with_globals(f, extra, "hook") if extra else f
    return njit(**(INNER | KERNEL | CHECKED))(plain) if checked else kernel_part(plain)


def _digest(*classes: type) -> str:
    h = hashlib.sha256(numba.__version__.encode())
    for file in (*sorted(Path(driver.__file__).parent.glob("*.py")), Path(base.__file__)):
        h.update(file.read_bytes())
    for cls in classes:
        h.update(f"{cls.__module__}.{cls.__qualname__}".encode())
        for parent in cls.__mro__[:-1]:
            h.update(Path(inspect.getfile(parent)).read_bytes())
    return h.hexdigest()[:16]


@functools.cache
def bind(
    prefetch: type[PagePolicy], order: type[PagePolicy], records: bool, checked: bool = False
) -> Callable:
    """`uvmsim.paging.driver.run_kernels` with the prefetch hooks of one policy and the list hooks
    of another (or the same one). ``records``: write the program."""
    constants = {
        "HAS_PREFETCH": bool(set(hooks_of(prefetch)) & set(PREFETCH_HOOKS)),
        "HAS_ORDER": bool(set(hooks_of(order)) & set(ORDER_HOOKS)),
        "MIGRATES": prefetch.migrates or order.migrates,
        "RECORDS": records,
    }
    names: dict[str, Any] = dict(constants)
    names |= {n: _hook(getattr(prefetch, n), checked) for n in PREFETCH_HOOKS}
    names |= {n: _hook(getattr(order, n), checked) for n in ORDER_HOOKS}
    names["move_tail"] = _actions()["move_tail"]
    tag = _digest(prefetch, order) + ("r" if records else "") + ("_checked" if checked else "")
    for part in PARTS:
        names[part.__name__] = kernel_part(with_globals(part, names, tag))
    return njit(cache=True, **KERNEL)(with_globals(driver.run_kernels, names, tag))
