"""What a sweep's picture shows: one number a policy and point of two axes, taken from the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import InputError
from uvmsim.studies.sweep.rows import COLUMNS, OK, OUT_OF_MEMORY
from uvmsim.studies.sweep.store import read

FIXED = (
    "trace_sha256", "limit", "unit", "model", "quantisation", "expert_bytes", "hardware", "program",
    "ram_bytes_per_s", "reserve_bytes", "ctx", "kv_type", "pool", "reset", "write_back", "pageable",
    "ncmoe", "threshold", "profile_sha256",
)  # fmt: skip
"""What one picture has one value of; where rows have several, the commonest of the finished ones is
drawn. (Of ``ncmoe`` several, where it is the axis.)"""


AXES = {"slots": "slots", "memory": "vram_bytes", "ncmoe": "ncmoe"}
"""What X can be, and its column. Runs that have no such value do as well at any."""
Y_AXES = {
    "link": ("link_bytes_per_s", 1e9),
    "memory": ("vram_bytes", 2.0**30),
    "ram": ("ram_bytes_per_s", 1e9),
}
"""What Y can be: its column, and what that is divided by. The link, unless that is one and all: then
memory where X is not, or host memory, where they vary."""


@dataclass
class Grid:
    """Tokens/s over memory (X values) and link (Y values), or what else varies."""

    x: np.ndarray
    """float64 [X]: GiB of VRAM, slots, or layers on the CPU."""
    y: np.ndarray
    """float64 [Y]: GB/s, or GiB of VRAM."""
    x_is: str
    """A key of `AXES`."""
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
    y_is: str = "link"
    """A key of `Y_AXES`."""
    left_out: list[str] = field(default_factory=list)
    """One phrase for each parameter of which other values exist and are not drawn."""

    @property
    def x_is_slots(self) -> bool:
        return self.x_is == "slots"

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
    # A dataset of before there was a column is null in it.
    rows = [dict.fromkeys(k for k, _ in COLUMNS) | r for r in read(dataset).to_pylist()]
    if keys is not None:
        rows = [r for r in rows if r["cell"] in keys]
    for condition in where:
        rows = _filtered(rows, condition)
    rows = [r for r in rows if r["status"] in (OK, OUT_OF_MEMORY)]
    if not any(r["status"] == OK for r in rows):
        raise InputError(f"{dataset}: no finished cell to draw; see its column 'error'")
    rows, x_is, y_is, left_out = _one_of_each(rows)
    if x_is == "slots":
        rows = [r for r in rows if r["status"] == OK]
    done = [r for r in rows if r["status"] == OK]
    decode = any(r["decode_tokens"] for r in done)
    measure = "decode_tokens_per_s" if decode else "tokens_per_s"
    xs = sorted({_x(r, x_is) for r in rows} - {None})
    y_column, scale_y = Y_AXES[y_is]
    ys = sorted({r[y_column] for r in rows} - {None})
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
        x = _x(r, x_is)
        y = r[y_column]  # rows of before there was such a column stand for any
        at = (slice(None) if y is None else y_at[y], slice(None) if x is None else x_at[x])
        if r["status"] == OUT_OF_MEMORY:
            big[at] = True
        elif r[measure] is not None:
            sums[label][at] += r[measure]  # seeds are averaged
            counts[label][at] += 1
    speed = {k: np.where(counts[k] > 0, sums[k] / np.maximum(counts[k], 1), np.nan) for k in sums}
    bounds = frozenset(k for k in speed if _sees_future(k))
    # What can be built first, what is a mechanism's own and what is only a bound after it.
    named = {r["policy"] for r in rows}
    order = sorted(speed, key=lambda k: (k in bounds, k not in named, "+" in k))
    full = [_x(r, x_is) for r in done if _pooled(r) and r["slots"] >= r["experts"]]
    scale_x = 2.0**30 if x_is == "memory" else 1.0
    first = done[0]
    return Grid(
        np.array(xs, float) / scale_x, np.array(ys, float) / scale_y, x_is,
        {k: speed[k] for k in order}, too_big, bounds, "decode" if decode else "all",
        min(full) / scale_x if full and x_is != "ncmoe" and min(full) > xs[0] else None,
        {k: first[k] for k in ("model", "hardware", "trace", "tokens", "expert_bytes", "experts")},
        y_is, left_out,
    )  # fmt: skip


def _pooled(row: dict[str, Any]) -> bool:
    """Whether a run had slots for experts. Policies of pages have a threshold and no slots."""
    return row["policy"] is not None and row["threshold"] is None


def _x(row: dict[str, Any], x_is: str) -> Any:
    """None for a run that does as well whatever X is."""
    if x_is == "slots" and not _pooled(row):
        return None
    return row[AXES[x_is]]


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


def _one_of_each(
    rows: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], str, str, list[str]]:
    """Rows that agree in `FIXED`; nulls (options that do not apply) agree with everything. Then what
    X and Y are, and what is left out."""
    left_out: list[str] = []
    x_is, y_is = "memory", "link"
    for column in FIXED:
        if column == "ram_bytes_per_s" and _over_ram(rows):
            y_is = "ram"
        elif column == "ncmoe" and _over_ncmoe(rows):
            x_is = "ncmoe"
            if _many(rows, "vram_bytes"):
                y_is = "memory"
        else:
            rows = _commonest(rows, column, left_out)
    if len({r["slots_asked"] for r in rows if _pooled(r)}) > 1:
        x_is = "slots"
        # Pages are held in all of the memory, whose size then is no axis.
        paged = _commonest([r for r in rows if r["threshold"] is not None], "vram_bytes", left_out)
        rows = [r for r in rows if r["threshold"] is None] + paged
    return rows, x_is, y_is, left_out


def _many(rows: list[dict[str, Any]], column: str) -> bool:
    return len({r[column] for r in rows} - {None}) > 1


def _over_ram(rows: list[dict[str, Any]]) -> bool:
    """Whether host memory is what varies beside X: no link, and not both of memory and layers."""
    one = not _many(rows, "vram_bytes") or not _many(rows, "ncmoe")
    return one and _many(rows, "ram_bytes_per_s") and not _many(rows, "link_bytes_per_s")


def _over_ncmoe(rows: list[dict[str, Any]]) -> bool:
    """Whether layers on the CPU are what varies, and no slots; memory then is Y, if no link varies."""
    finished = {r["ncmoe"] for r in rows if r["status"] == OK} - {None}
    asked = {r["slots_asked"] for r in rows if _pooled(r)}
    free = not _many(rows, "vram_bytes") or not _many(rows, "link_bytes_per_s")
    return len(finished) > 1 and free and len(asked) < 2


def _commonest(
    rows: list[dict[str, Any]], column: str, left_out: list[str]
) -> list[dict[str, Any]]:
    """The rows with the value of a column that most finished ones have, or with none."""
    count = Counter(r[column] for r in rows if r[column] is not None)
    if len(count) < 2:
        return rows
    finished = Counter(r[column] for r in rows if r[column] is not None and r["status"] == OK)
    value = (finished or count).most_common(1)[0][0]
    left_out.append(f"{column} {str(value)[:12]} (1 of {len(count)})")
    return [r for r in rows if r[column] in (value, None)]


def _sees_future(label: str) -> bool:
    from uvmsim.policies.registry import parse

    try:
        return "next_use" in parse(label).needs
    except InputError:
        return False  # a mechanism, or a user's policy whose file is elsewhere
