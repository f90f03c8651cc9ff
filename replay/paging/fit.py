"""From rows of `replay.paging.microbench` to constants: what explains the times, given the counts.

A kernel that faults takes what it takes with its pages there, and something for each batch, entry of
the fault buffer, block served, page moved and so on. The driver's handler is one thread, so these add
up.
What they cost is the solution with the least squares of relative errors, none below 0; costs of copies
are those of one way in which host memory is laid out (`replay.paging.device.HOSTS`), the others are
shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replay.calibrate.stats import Row, non_negative_least_squares

SHARED = ("batches", "entries", "pages", "services")
"""Counts (`replay.paging.counts.Counts`) whose cost does not depend on host memory."""
OWN = ("pieces", "moved")
"""Counts whose cost does."""
TRIES = 60
"""Times that the rows are drawn anew for the spread."""


@dataclass(frozen=True)
class Constants:
    """ns each, as fitted."""

    shared: dict[str, float]
    """By count."""
    own: dict[str, dict[str, float]]
    """By kind of host memory, by count."""
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By name (``batches``; ``pieces, huge``): 10th and 90th percentile over fits to rows drawn
    anew."""
    error: dict[str, float] = field(default_factory=dict)
    """Of the rows' times: ``mean`` and ``worst`` relative error, mean ``ln`` of the ratio, ``rows``."""

    def time(self, counts: dict[str, int], host: str) -> float:
        """ns that the counts of a run take."""
        return sum(
            cost * counts[name] for part in (self.shared, self.own[host])
            for name, cost in part.items()
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {
            "shared": self.shared, "own": self.own,
            "spread": {k: list(v) for k, v in self.spread.items()}, "error": self.error,
        }  # fmt: skip


def usable(rows: Sequence[Row]) -> list[Row]:
    """Those with faults, that took longer than with their pages there."""
    return [r for r in rows if r["counts"]["batches"] and r["median_ns"] > r["there_ns"]]


def fit(
    rows: Sequence[Row], shared: Sequence[str] = SHARED, own: Sequence[str] = OWN, seed: int = 0,
    floor: dict[str, float] | None = None,
) -> Constants:  # fmt: skip
    """Constants of the counts named; ``floor``: what one costs at least, by count, ns. Raises
    `ValueError` where there are too few rows for them."""
    rows = usable(rows)
    hosts = sorted({r["host"] for r in rows})
    n = len(shared) + len(own) * len(hosts)
    if not rows or len(rows) < n:
        raise ValueError(f"{len(rows)} runs with faults are too few for {n} constants")
    a = np.array([_terms(r, shared, own, hosts) for r in rows], np.float64)
    there = np.array([r["there_ns"] for r in rows], np.float64)
    whole = np.array([r["median_ns"] for r in rows], np.float64)
    least = np.array(
        [(floor or {}).get(k, 0.0) for k in (*shared, *(k for _ in hosts for k in own))]
    )
    scaled = a / whole[:, None]
    target = (whole - there - a @ least) / whole
    found = non_negative_least_squares(scaled, target) + least
    rng = np.random.default_rng(seed)
    draws = [rng.integers(0, len(rows), len(rows)) for _ in range(TRIES)]
    tries = [non_negative_least_squares(scaled[d], target[d]) + least for d in draws]
    low, high = np.percentile(tries, (10, 90), axis=0)
    names = [*shared, *(f"{k}, {h}" for h in hosts for k in own)]
    ratio = (a @ found + there) / whole
    parts = found[len(shared) :].reshape(len(hosts), len(own)).tolist()
    return Constants(
        dict(zip(shared, found[: len(shared)].tolist(), strict=True)),
        {h: dict(zip(own, part, strict=True)) for h, part in zip(hosts, parts, strict=True)},
        {k: (float(x), float(y)) for k, x, y in zip(names, low, high, strict=True)},
        {
            "mean": float(np.abs(ratio - 1).mean()), "worst": float(np.abs(ratio - 1).max()),
            "ln": float(np.abs(np.log(np.maximum(ratio, 1e-9))).mean()), "rows": len(rows),
        },
    )  # fmt: skip


def _terms(r: Row, shared: Sequence[str], own: Sequence[str], hosts: list[str]) -> list[float]:
    counts = r["counts"]
    zeros = [0.0] * len(own)
    mine = [counts[k] for k in own]
    return [counts[k] for k in shared] + [
        x for h in hosts for x in (mine if h == r["host"] else zeros)
    ]
