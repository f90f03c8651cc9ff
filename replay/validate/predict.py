"""What the simulator says of a cell, in the words that a measurement uses too."""

from __future__ import annotations

from typing import Any

import numpy as np

from replay.validate.grid import Cell
from replay.validate.uvm import FaultCosts
from traces.files.schema import DECODE, PREFILL
from uvmsim.studies.simulate import simulate

COUNTERS = ("accesses", "hits", "misses", "bytes_h2d", "bytes_d2h", "evictions")
"""What prediction and measurement must agree on exactly."""
PERCENTILES = (10, 25, 50, 75, 90, 99)


def predict(cell: Cell, faults: FaultCosts | None = None) -> dict[str, Any]:
    """Counters, speeds, latencies and stalls of one cell, from its job (and so its hardware) alone.

    ``faults``: what mode ``managed`` is priced with. ``status`` is ``ok`` or ``out-of-memory``; in the
    latter case nothing else is said.
    """
    job, mechanism = cell.job, cell.mode
    if cell.mode == "managed":
        assert faults is not None
        job, mechanism = faults.job(job), "expert-cache"
    result = simulate(job, mechanism)
    if result.does_not_fit is not None:
        return {"status": "out-of-memory", "what": str(result.does_not_fit)}
    made = result.to_json()
    step_ns = result.step_ns.copy()
    paging = faults.apply(cell.job, made, step_ns) if cell.mode == "managed" and faults else {}
    return {
        "status": "ok",
        "counters": {k: made[k] for k in COUNTERS},
        "prefetch": made.get("prefetch"),
        "time_split_s": made["time_split_s"],
        **speeds(cell, step_ns),
        **paging,
    }


def speeds(cell: Cell, step_ns: np.ndarray) -> dict[str, Any]:
    """Speeds and latency percentiles from the duration of each step (int64 [S], ns)."""
    w = cell.job.workload
    made: dict[str, Any] = {"time_s": float(step_ns.sum()) / 1e9}
    for name, phase in (("prefill", PREFILL), ("decode", DECODE)):
        mine = w.step_phase == phase
        tokens, ns = int(w.step_tokens[mine].sum()), float(step_ns[mine].sum())
        made[f"{name}_tokens_per_s"] = tokens / ns * 1e9 if tokens and ns > 0 else None
    decode = step_ns[w.step_phase == DECODE]
    values = np.percentile(decode, PERCENTILES) / 1e6 if len(decode) else []
    made["token_latency_ms"] = {
        f"p{p}": round(float(v), 6) for p, v in zip(PERCENTILES, values, strict=bool(len(decode)))
    }
    return made
