"""What a sweep's picture shows: one number a policy, memory size and link, taken from the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import InputError
from uvmsim.sweep.rows import COLUMNS, OK, OUT_OF_MEMORY
from uvmsim.sweep.store import read

FIXED = (
    "trace_sha256", "limit", "unit", "model", "quantisation", "expert_bytes", "hardware", "pool",
    "reset", "write_back", "pageable", "ncmoe", "profile_sha256",
)  # fmt: skip
"""What one picture has one value of; where rows have several, the commonest is drawn."""


@dataclass
class Grid:
    """Tokens/s over memory (X values) and link (Y values)."""

    x: np.ndarray
    """float64 [X]: GiB of VRAM, or slots."""
    y: np.ndarray
    """float64 [Y]: GB/s."""
    x_is_slots: bool
    speed: dict[str, np.ndarray]
    """By policy (or mechanism), bounds last: float64 [Y, X], NaN where there is none."""
    too_big: dict[str, np.ndarray]
    """bool [Y, X]: the run did not fit."""
    bounds: frozenset[str]
    """Labels that see the future."""
    measure: str
    """``decode`` or ``all``: which tokens are counted."""
    fits_at: float | None
    """Least X at which every expert has a slot."""
    about: dict[str, Any]
    left_out: list[str] = field(default_factory=list)
    """One phrase for each parameter of which other values exist and are not drawn."""

    @property
    def real(self) -> list[str]:
        """Labels that could be built: all but the bounds."""
        return [k for k in self.speed if k not in self.bounds]


def load(
    dataset: str | Path, keys: Collection[str] | None = None, where: Iterable[str] = ()
) -> Grid:
    """The grid of a dataset. ``keys`` limits it to some cells, ``where`` (``column=value``) to rows.

    Raises `InputError` where nothing is left to draw.
    """
    rows = read(dataset).to_pylist()
    if keys is not None:
        rows = [r for r in rows if r["cell"] in keys]
    for condition in where:
        rows = _filtered(rows, condition)
    rows = [r for r in rows if r["status"] in (OK, OUT_OF_MEMORY)]
    rows, left_out = _one_of_each(rows)
    done = [r for r in rows if r["status"] == OK]
    if not done:
        raise InputError(f"{dataset}: no finished cell to draw; see its column 'error'")
    pooled = [r for r in rows if r["policy"] is not None]
    by_slots = len({r["slots_asked"] for r in pooled}) > 1
    if by_slots:
        rows = [r for r in rows if r["status"] == OK]
    decode = any(r["decode_tokens"] for r in done)
    measure = "decode_tokens_per_s" if decode else "tokens_per_s"
    xs = sorted(
        {_x(r, by_slots) for r in (pooled if by_slots else rows) if _x(r, by_slots) is not None}
    )
    ys = sorted({r["link_bytes_per_s"] for r in rows})
    x_at, y_at = {v: i for i, v in enumerate(xs)}, {v: i for i, v in enumerate(ys)}
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    too_big: dict[str, np.ndarray] = {}
    shape = (len(ys), len(xs))
    for r in rows:
        label = r["policy"] or r["mechanism"]
        for store in (sums, counts):
            store.setdefault(label, np.zeros(shape))
        big = too_big.setdefault(label, np.zeros(shape, bool))
        # A run without a pool does as well whatever the pool's size.
        free = by_slots and r["policy"] is None
        at = (y_at[r["link_bytes_per_s"]], slice(None) if free else x_at[_x(r, by_slots)])
        if r["status"] == OUT_OF_MEMORY:
            big[at] = True
        elif r[measure] is not None:
            sums[label][at] += r[measure]  # seeds are averaged
            counts[label][at] += 1
    speed = {k: np.where(counts[k] > 0, sums[k] / np.maximum(counts[k], 1), np.nan) for k in sums}
    bounds = frozenset(k for k in speed if _sees_future(k))
    # What can be built first, what is a mechanism's own and what is only a bound after it.
    named = {r["policy"] for r in pooled}
    order = sorted(speed, key=lambda k: (k in bounds, k not in named, "+" in k))
    full = [_x(r, by_slots) for r in done if r["policy"] and r["slots"] >= r["experts"]]
    scale_x = 1.0 if by_slots else 2.0**30
    first = done[0]
    return Grid(
        np.array(xs, float) / scale_x, np.array(ys, float) / 1e9, by_slots,
        {k: speed[k] for k in order}, too_big, bounds, "decode" if decode else "all",
        min(full) / scale_x if full and min(full) > xs[0] else None,
        {k: first[k] for k in ("model", "hardware", "trace", "tokens", "expert_bytes", "experts")},
        left_out,
    )  # fmt: skip


def _x(row: dict[str, Any], by_slots: bool) -> Any:
    return row["slots"] if by_slots else row["vram_bytes"]


def _filtered(rows: list[dict[str, Any]], condition: str) -> list[dict[str, Any]]:
    column, eq, value = condition.partition("=")
    names = [k for k, _ in COLUMNS]
    if not eq or column not in names:
        raise InputError(
            f"--where {condition}: give COLUMN=VALUE with one of {', '.join(names[:26])}"
        )
    kept = [r for r in rows if str(r[column]) == value]
    if not kept:
        there = ", ".join(sorted({str(r[column]) for r in rows})[:8])
        raise InputError(f"--where {condition}: no such row; {column} is one of {there}")
    return kept


def _one_of_each(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows that agree in `FIXED`; nulls (options that do not apply) agree with everything."""
    left_out = []
    for column in FIXED:
        count = Counter(r[column] for r in rows if r[column] is not None)
        if len(count) > 1:
            value = count.most_common(1)[0][0]
            rows = [r for r in rows if r[column] in (value, None)]
            shown = str(value)[:12]
            left_out.append(f"{column} {shown} (1 of {len(count)})")
    return rows, left_out


def _sees_future(label: str) -> bool:
    from uvmsim.policies.registry import parse

    try:
        return "next_use" in parse(label).needs
    except InputError:
        return False  # a mechanism, or a user's policy whose file is elsewhere
