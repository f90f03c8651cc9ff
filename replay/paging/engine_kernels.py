"""The pages that the replay engine's kernels touch, as the page model wants them (`Kernels`).

A layer's experts are two kernels (replay/kernels/experts.cu). Grid: row blocks fastest, then experts. A
block of 8 warps walks its rows of gate and up side by side, then, in the second kernel, of down; all
blocks of a decode step are on the GPU at once. Dense reads are of plain memory and never fault.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replay.bank import stride
from replay.layout import ExpertLayout
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.timing import dense_times, expert_times
from uvmsim.paging.touches import Kernels
from uvmsim.runs.job import Job

PAGE = 4096
WARPS = 8
"""Of a thread block, a row (a pair of rows of down) each."""
BLOCKS_PER_SM = 3
"""Thread blocks an SM is given at most (`replay.backend.cuda`)."""


def engine_kernels(job: Job, layouts: list[ExpertLayout], hw: Hardware, sms: int) -> Kernels:
    """Kernels of a decode workload, whose bank begins at page 0: dense, gate and up, down of each
    event, and what follows a step's last."""
    w, m = job.workload, job.model
    before, after = dense_times(w, m, hw)
    experts = expert_times(w, m, hw, w.event_lo[1:])
    at = np.cumsum([0, *(stride(x.nbytes) for x in layouts for _ in range(w.n_experts))])
    b = _Builder(sms)
    for ev in range(w.n_events):
        step = int(w.event_step[ev])
        chosen = w.ids[w.event_lo[ev] : w.event_lo[ev + 1]].tolist()
        b.kernel(step, int(before[ev]))
        layout = layouts[int(w.event_layer[ev])]
        ns, n = int(experts[ev]), len(chosen)
        b.rows([int(at[e]) for e in chosen], layout, n, False)
        b.kernel(step, ns * 2 // 3)
        b.rows([int(at[e]) for e in chosen], layout, n, True)
        b.kernel(step, ns - ns * 2 // 3)
        if ev + 1 == w.n_events or int(w.event_step[ev + 1]) != step:
            b.kernel(step, int(after[step]))
    return b.kernels()


def pages_of(layouts: list[ExpertLayout], n_experts: int) -> int:
    """4 KiB pages of the bank."""
    return -(-sum(stride(x.nbytes) * n_experts for x in layouts) // PAGE)


class _Builder:
    """Kernels, waves and touches so far."""

    def __init__(self, sms: int) -> None:
        self.sms = sms
        self.step: list[int] = []
        self.ns: list[int] = []
        self.wave_hi: list[int] = []
        self.touch_hi: list[int] = []
        self.burst: list[int] = []
        self.entries: list[int] = []
        self.first: list[int] = []
        self.last: list[int] = []

    def kernel(self, step: int, ns: int) -> None:
        """What was touched since the last one is this kernel's."""
        self.step.append(step)
        self.ns.append(ns)
        self.wave_hi.append(len(self.touch_hi))

    def rows(self, bases: list[int], x: ExpertLayout, n: int, down: bool) -> None:
        """A wave: the rows of all blocks of the experts at ``bases``."""
        rows = x.n_embd // 2 if down else x.n_ff
        row = x.plane // x.n_embd * 2 if down else x.plane // x.n_ff
        passes = max(1, min(16, round(rows * n / (WARPS * BLOCKS_PER_SM * self.sms))))
        each = WARPS * passes
        for base in bases:
            for r in range(0, rows, each):
                stop = min(r + each, rows)
                for plane in (2,) if down else (0, 1):
                    lo = base + plane * x.plane
                    self.first.append((lo + r * row) // PAGE)
                    self.last.append(-(-(lo + stop * row) // PAGE))
        self.touch_hi.append(len(self.first))
        self.burst.append(max(1, -(-WARPS * row // PAGE)))
        self.entries.append(max(1, min(PAGE // max(row, 1), WARPS)))

    def kernels(self) -> Kernels:
        i64, k, w = np.int64, len(self.step), len(self.touch_hi)
        columns: dict[str, Any] = {
            "step": np.array(self.step, np.int32), "compute_ns": np.array(self.ns, i64),
            "wave_hi": np.array(self.wave_hi, i64), "copy_bytes": np.zeros(k, i64),
            "tenant": np.zeros(k, np.int8), "tail_ns": np.zeros(k, i64),
            "touch_hi": np.array(self.touch_hi, i64), "entries": np.array(self.entries, np.int8),
            "burst": np.array(self.burst, np.int8), "limit": np.full(w, self.sms, np.int32),
            "first": np.array(self.first, i64), "last": np.array(self.last, i64),
            "fetched": np.zeros(w, np.int16), "looks": np.ones(w, np.int8),
        }  # fmt: skip
        return Kernels(**{name: columns[name] for name in Kernels._fields if name in columns})
