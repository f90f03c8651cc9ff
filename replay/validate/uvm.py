"""Predicting the live ``managed`` mode: a missing expert is faulted in by the kernel that reads it, one
that leaves is prefetched to the host first, and the kernel waits for that.

Decisions are the expert cache's. The times are those that the calibration fitted to the engine's own
runs on managed memory (`replay.calibrate.uvm_mode`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from replay.calibrate.uvm_mode import UVM, Moves, moves
from traces.errors import InputError
from uvmsim.machine.hardware import Hardware
from uvmsim.runs.job import Job

FREE = 10**18
"""Bytes a second of a link that costs nothing."""
KEYS = ("expert_bytes", "fault_ns", "evict_event_ns", "evict_ns", "fault_fixed_share",
        "evict_fixed_share")  # fmt: skip


@dataclass(frozen=True)
class FaultCosts:
    """What the calibration says of mode ``managed``; fields as in `replay.calibrate.uvm_mode.fit`."""

    expert_bytes: int
    fault_ns: tuple[int, ...]
    evict_event_ns: int
    evict_ns: int
    fault_fixed_share: float = 0.0
    evict_fixed_share: float = 0.0
    groups_per_byte: float | None = None
    """Fault groups a byte of missing experts; None where the calibration could not count them."""

    def priced(self, hw: Hardware) -> Hardware:
        """The machine with copies that cost nothing: what the rest of a run takes."""
        return replace(hw, h2d_bytes_per_s=FREE, copy_latency_ns=0)

    def job(self, job: Job) -> Job:
        """The job whose expert-cache run is that rest."""
        return replace(job, hardware=self.priced(job.hardware), write_back=False)

    def times(self, m: Moves, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [S] ns each: faults in kernels, and kernels waiting for victims."""
        table = np.array((0, *self.fault_ns), np.float64)
        last = len(table) - 1
        slope = (table[-1] - table[1]) / max(last - 1, 1)
        faults = table[np.minimum(m.missing, last)] + slope * np.maximum(m.missing - last, 0)
        faults *= _scale(m.missing, m.missing_bytes, self.expert_bytes, self.fault_fixed_share)
        evict = np.where(m.leaving > 0, self.evict_event_ns + self.evict_ns * m.leaving, 0.0)
        evict *= _scale(m.leaving, m.leaving_bytes, self.expert_bytes, self.evict_fixed_share)
        return tuple(
            np.rint(np.bincount(m.step, x, n_steps)).astype(np.int64) for x in (faults, evict)
        )  # type: ignore[return-value]

    def predicted(self, m: Moves) -> dict[str, Any]:
        """Fault groups, and bytes each way: those of the experts that miss and leave. (What the
        calibration counts a byte is a small run's, and was a worse guess on an H100.)"""
        missed, left = int(m.missing_bytes.sum()), int(m.leaving_bytes.sum())
        groups = None if self.groups_per_byte is None else round(self.groups_per_byte * missed)
        return {
            "fault_groups": groups,
            "bytes_in": missed,
            "bytes_out": left,
        }

    def apply(self, job: Job, made: dict[str, Any], step_ns: np.ndarray) -> dict[str, Any]:
        """What `replay.validate.predict` adds to the priced job's prediction ``made``; changes its
        time split and ``bytes_d2h``, and adds to ``step_ns``."""
        m = moves(job)
        faults, evict = self.times(m, len(step_ns))
        step_ns += faults + evict
        made["time_split_s"]["compute"] += float(faults.sum()) / 1e9
        made["time_split_s"]["transfer"] += float(evict.sum()) / 1e9
        made["bytes_d2h"] = int(m.leaving_bytes.sum())
        return {"faults": self.predicted(m), "free_prefetch_bytes": m.prefetched}


def _scale(n: np.ndarray, nbytes: np.ndarray, size: int, fixed: float) -> np.ndarray:
    """What experts of another size than the measured one cost, of what that one does."""
    return fixed + (1 - fixed) * nbytes / np.maximum(n * size, 1)


def tables_of(hardware: str) -> Path:
    """The raw tables beside a calibration file."""
    return Path(hardware).with_suffix(".measurements.json")


def load(hardware: str) -> FaultCosts:
    """From the raw tables beside the calibration file ``hardware``. Raises `InputError`."""
    path = tables_of(hardware)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        values = {k: found["fitted"][f"{UVM}.{k}"]["value"] for k in KEYS}
        values["fault_ns"] = tuple(values["fault_ns"])
        counted = (found["tables"].get("fault_groups") or [{}])[0]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path.name}: has no times of mode managed, which it is predicted from; run `uvmsim "
            "calibrate` on the GPU, and keep the file beside the profile"
        ) from None
    if counted.get("missed_bytes") and counted.get("fault_groups"):
        values["groups_per_byte"] = counted["fault_groups"] / counted["missed_bytes"]
    return FaultCosts(**values)
