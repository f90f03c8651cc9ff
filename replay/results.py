"""What a replay left behind: measured times, moved bytes, and whether the run can be believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from replay.backend.base import BACK, DEMAND, PREFETCH
from replay.meter import Measured
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome, about_job


@dataclass
class Moved:
    """Bytes a run moved, by what for."""

    demand: int = 0
    prefetch: int = 0
    back: int = 0
    zero_copy: int = 0


@dataclass(frozen=True)
class Replayed:
    """A run on a device: the trail of its `uvmsim.runs.outcome.Outcome`."""

    measured: Measured
    moved: Moved
    options: dict[str, Any]
    """How it was run: dtype, split, pinned, shared images, run-ahead, ..."""
    cpu_ns: int = 0
    """The CPU computed experts for so long."""
    ram: dict[str, Any] | None = None
    """What host memory above a disk held and read, as `uvmsim.runs.reads.Reads.measures`."""
    disk_ns: int = 0
    """The host waited for reads that a wave needed."""

    @property
    def busy_ns(self) -> dict[str, int] | None:
        """By direction and purpose, how long copies ran; None where only steps were timed."""
        busy = self.measured.busy_ns
        if busy is None:
            return None
        return {"demand": busy[DEMAND], "prefetch": busy[PREFETCH], "back": busy[BACK]}

    def measures(self, run: Outcome) -> dict[str, Any]:
        """The fields of a simulated run, and what only a measurement has."""
        c, moved = run.counters, self.moved
        assert c is not None
        counts = {
            **run.counts(),
            **({"misses_by": c.misses_by} if c.misses_by else {}),
            "bytes_h2d": moved.demand + moved.prefetch + moved.zero_copy,
            "bytes_d2h": moved.back,
            "bytes_prefetched": moved.prefetch,
            "prefetch": {
                "issued": c.prefetch_issued,
                "used": c.prefetch_used,
                "wasted": c.prefetch_wasted,
            },
            **({"ram": self.ram} if self.ram else {}),
        }
        return counts | run.speeds() | self._waiting(run.step_ns) | belief(run, self.options)

    def counted(self, steps: np.ndarray) -> dict[str, Any]:
        """Nothing counts bytes by forward pass on a device."""
        return dict.fromkeys(("bytes_h2d", "bytes_d2h"))

    def _waiting(self, step_ns: np.ndarray) -> dict[str, Any]:
        """Where the time went."""
        m, seconds = self.measured, float(step_ns.sum()) / 1e9
        d: dict[str, Any] = {"host_issue_s": float(m.issue_ns.sum()) / 1e9, "time_split_s": None}
        if m.stall_ns is None or m.transfer_ns is None:
            return d
        stall, transfer = float(m.stall_ns.sum()) / 1e9, float(m.transfer_ns.sum()) / 1e9
        # Of a wave that waits for both it cannot be told what it would have waited for one.
        cpu = min(stall, self.cpu_ns / 1e9)
        disk = min(stall - cpu, self.disk_ns / 1e9)
        transfer = min(transfer, stall - cpu - disk)
        d["time_split_s"] = {
            "compute": seconds - stall,
            "cpu": cpu,
            **({"disk": disk} if self.ram else {}),
            "transfer": transfer,
            "queueing": stall - cpu - disk - transfer,
        }
        if self.cpu_ns:
            d["cpu_s"] = self.cpu_ns / 1e9
        busy = self.busy_ns
        assert busy is not None
        d["copy_busy_s"] = {k: v / 1e9 for k, v in busy.items()}
        link = (busy["demand"] + busy["prefetch"]) / 1e9
        d["link_utilisation"] = min(1.0, link / seconds) if seconds else None
        return d


def belief(run: Outcome, options: dict[str, Any]) -> dict[str, Any]:
    """Whether a run can be believed, and how it was made."""
    return {
        "options": options,
        "verified": verified(run),
        "problems": run.problems,
        "notes": run.notes,
    }


def verified(run: Outcome) -> bool:
    """Every output of the run and every expert's bytes after it were checked, and right."""
    return run.trail is not None and not run.problems


def replayed(run: Outcome) -> Replayed:
    """The trail of a replay that ran. Raises `RuntimeError` where the model did not fit."""
    if not isinstance(run.trail, Replayed):
        raise RuntimeError(f"does not fit: {run.does_not_fit}")
    return run.trail


def begun(job: Job, mode: str, machine: dict[str, Any]) -> Outcome:
    """An outcome that is still to come."""
    run = Outcome(job, mode)
    run.about = about_job(job, mode) | {"machine": machine} | belief(run, {})
    return run
