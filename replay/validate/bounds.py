"""What the engine loses to its own bounds, from a report's rows and the calibration's copy speed.

The bounds of a run are its copies at the pinned peak of the same calibration (back to back, largest
rate of any size) and its kernels as they ran. With prefetch they overlap, and the larger one is the
bound; without, a layer's kernels wait for its copies, and the bound is their sum.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

MODES = ("expert-cache", "stream")
"""Modes whose bytes are explicit copies."""


def peak_of(tables: str | Path) -> int | None:
    """Bytes a second of pinned host-to-device copies, from a ``.measurements.json``; None without."""
    try:
        rows = json.loads(Path(tables).read_text(encoding="utf-8"))["tables"]["copies_h2d"]
        return max(int(r["bytes_per_s"]) for r in rows)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def bounds(rows: Sequence[dict[str, Any]], peak: int | None) -> dict[str, Any]:
    """``cells``: by cell ``copy_s``, ``compute_s``, ``time_s`` and either ``over_bound`` (prefetched,
    and copies took longer than kernels) or ``overhead`` (no prefetch): the share of the time that is
    neither kernels nor bytes at the peak. ``over_bound`` and ``overhead``: median and worst."""
    made: dict[str, Any] = {"peak_bytes_per_s": peak, "cells": {}}
    for r in rows:
        measured, predicted = r["measured"], r["predicted"]
        split = measured.get("time_split_s")
        if not peak or r["mode"] not in MODES or not split or r["status"] != "ok":
            continue
        copy_s = measured["counters"]["bytes_h2d"] / peak
        compute_s, time_s = split["compute"] + split["cpu"], measured["time_s"]
        if not copy_s or not time_s:
            continue
        cell = {"copy_s": copy_s, "compute_s": compute_s, "time_s": time_s}
        if (predicted.get("prefetch") or {}).get("issued"):
            if copy_s < compute_s:
                continue
            cell["over_bound"] = time_s / max(copy_s, compute_s)
        else:
            cell["overhead"] = 1 - (copy_s + compute_s) / time_s
        made["cells"][r["cell"]] = cell
    for key in ("over_bound", "overhead"):
        values = [c[key] for c in made["cells"].values() if key in c]
        made[key] = {"cells": len(values), "median": median(values), "worst": max(values)} if values \
            else None  # fmt: skip
    return made
