"""What the page model says of a run, in the words of a measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from replay.paging.validation.config import LlamaRun
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.mechanisms.uvm import Uvm
from uvmsim.paging import tables as t
from uvmsim.paging.layout import PAGE
from uvmsim.paging.trail import Paged
from uvmsim.runs.job import Job
from uvmsim.studies.resolve import open_trace
from uvmsim.workload import build_workload


def described(counts: np.ndarray, step_ns: np.ndarray) -> dict[str, Any]:
    """From the driver's counters (int64 [S, COUNTERS]) and the steps' times (int64 [S])."""
    total = counts.sum(axis=0)
    demand = int(total[t.FAULTS])
    return {
        "bytes_in": int(total[t.PAGES_IN]) * PAGE,
        "demand_bytes": demand * PAGE,
        "tree_bytes": (int(total[t.PAGES_IN]) - demand) * PAGE,
        "batches": int(total[t.BATCHES]),
        "services": int(total[t.SERVICES]),
        "operations": int(total[t.COPIES]),
        "blocks": int(total[t.ACTIVATED]),
        "step_ns": step_ns.tolist(),
        "step_bytes_in": (counts[:, t.PAGES_IN] * PAGE).tolist(),
        "step_batches": counts[:, t.BATCHES].tolist(),
    }


def llama(run: LlamaRun, routing: Path, hardware: str, ctx: int) -> dict[str, Any]:
    """A run of llama.cpp with everything on the host at first and room for all of it; ``routing``: its
    routing trace; ``ctx``: tokens its KV cache has room for."""
    hw = Hardware.load(hardware, run.program)
    model = Model.load(run.model)
    job = Job(build_workload(open_trace(str(routing))), model, hw, ctx=ctx)
    outcome = Uvm().run(job)
    assert isinstance(outcome.trail, Paged)
    return described(outcome.trail.run.counts, outcome.trail.step_ns())
