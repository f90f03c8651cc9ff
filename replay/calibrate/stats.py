"""What repeated timings are reduced to: a median with its spread, and straight-line fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
"""One line of a raw table: what was done, then `summary` of how long it took."""


def summary(ns: Sequence[float] | np.ndarray) -> Row:
    """Median and spread (10th and 90th percentile) of durations in ns, with their number."""
    values = np.asarray(ns, np.float64)
    if not len(values):
        raise ValueError("no durations to summarise")
    low, mid, high = np.percentile(values, (10, 50, 90))
    return {
        "median_ns": round(float(mid), 1),
        "p10_ns": round(float(low), 1),
        "p90_ns": round(float(high), 1),
        "n": len(values),
    }


def row(ns: Sequence[float] | np.ndarray, nbytes: int | None = None, **about: Any) -> Row:
    """A line of a table; with ``nbytes`` it also says how many bytes a second that is."""
    made: Row = {**about}
    if nbytes is not None:
        made["bytes"] = int(nbytes)
    made |= summary(ns)
    if nbytes is not None:
        made["bytes_per_s"] = round(nbytes / max(made["median_ns"], 1e-3) * 1e9)
    return made


def fit_copies(rows: Sequence[Row]) -> tuple[float, float, float]:
    """``(latency ns, bytes per second, worst relative error)`` of ``latency + bytes / rate``.

    Least squares of relative errors, so that a 4 KiB copy counts as much as one of 256 MiB; the
    latency is at least 0. Needs rows with ``bytes`` and ``median_ns``, of two sizes or more.
    """
    size = np.array([r["bytes"] for r in rows], np.float64)
    took = np.array([r["median_ns"] for r in rows], np.float64)
    if len(set(size.tolist())) < 2:
        raise ValueError("a line needs two sizes")
    terms = np.column_stack((np.ones(len(size)), size))
    latency, per_byte = non_negative(terms / took[:, None], np.ones(len(size)))
    if per_byte <= 0:
        raise ValueError("larger copies took no longer than small ones")
    error = np.abs(terms @ np.array((latency, per_byte)) / took - 1)
    return float(latency), float(1e9 / per_byte), float(error.max())


def non_negative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x >= 0 that minimises ``|a x - b|``, for a handful of unknowns.

    Every set of unknowns that may be above zero is tried (2^n least squares; the best feasible one is
    the answer, since the minimum over the non-negative orthant lies inside one of its faces).
    """
    n = a.shape[1]
    if n > 12:
        raise ValueError("meant for a handful of unknowns")
    best, least = np.zeros(n), float(b @ b)
    for mask in range(1, 1 << n):
        free = [i for i in range(n) if mask >> i & 1]
        part, *_ = np.linalg.lstsq(a[:, free], b, rcond=None)
        if (part < 0).any():
            continue
        left = b - a[:, free] @ part
        if float(left @ left) < least * (1 - 1e-12):
            least = float(left @ left)
            best = np.zeros(n)
            best[free] = part
    return best


def non_negative_least_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x >= 0 that minimises ``|a x - b|`` (Lawson and Hanson, Solving Least Squares Problems, 1974,
    algorithm 23.10), for any number of unknowns."""
    n = a.shape[1]
    x = np.zeros(n)
    free = np.zeros(n, bool)
    tolerance = 1e-10 * max(
        1.0, float(np.abs(a).max(initial=0.0)) * float(np.abs(b).max(initial=0.0))
    )
    for _ in range(10 * n + 10):
        slope = a.T @ (b - a @ x)
        slope[free] = -np.inf
        if free.all() or slope.max() <= tolerance:
            break
        free[int(slope.argmax())] = True
        while True:
            trial = np.zeros(n)
            trial[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            below = free & (trial <= 0)
            if not below.any():
                x = trial
                break
            step = (x[below] / np.maximum(x[below] - trial[below], 1e-300)).min()
            x = x + step * (trial - x)
            free &= x > 1e-15 * max(1.0, float(x.max()))
            x[~free] = 0.0
    return x


def repeat(once: Callable[[], float], times: int, budget_s: float = 1.0) -> list[float]:
    """``once()`` (which returns ns) up to ``times`` times, at least three, within about
    ``budget_s`` of what it reports."""
    taken: list[float] = []
    while len(taken) < times and (len(taken) < 3 or sum(taken) < budget_s * 1e9):
        taken.append(once())
    return taken
