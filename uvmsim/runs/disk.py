"""What a disk made of a run's times: what waves waited for it, and what must hold of every run."""

from __future__ import annotations

import numpy as np

from uvmsim.runs.plan import DEMAND, PREFETCH, Plan
from uvmsim.runs.timeline import Timeline


def disk_wait(plan: Plan, t: Timeline) -> np.ndarray:
    """int64 [W]: of each wave's wait, what passes until the last read it needs is done."""
    waves = len(plan.pre_ns)
    last = t.wave_open.copy()
    reads = plan.reads
    if reads is None or not len(reads.bytes):
        return np.zeros(waves, np.int64)
    wave = np.repeat(np.arange(waves), np.diff(plan.wave_copy_hi, prepend=0))
    mine = (plan.copy_kind == DEMAND) & (reads.of_copy >= 0)
    np.maximum.at(last, wave[mine], t.read_done[reads.of_copy[mine]])
    waits = np.repeat(np.arange(waves), np.diff(plan.wave_wait_hi, prepend=0))
    needed = reads.of_copy[plan.waits]
    np.maximum.at(last, waits[needed >= 0], t.read_done[needed[needed >= 0]])
    return np.minimum(last, t.wave_ready) - t.wave_open


def check_reads(plan: Plan, t: Timeline) -> None:
    """No copy moves what is not there, no slot is overwritten while a copy reads it, no more reads are
    in flight than may be, and each takes its time at least."""
    r = plan.reads
    assert r is not None
    if (t.read_done - t.read_start < r.ns + r.latency_ns).any():
        raise AssertionError("a read took less time than planned")
    needs = r.of_copy >= 0
    if (t.copy_start[needs] < t.read_done[r.of_copy[needs]]).any():
        raise AssertionError("a copy began before its expert had been read")
    for column in range(2):
        after = r.after[:, column]
        if (t.read_start[after >= 0] < t.copy_done[after[after >= 0]]).any():
            raise AssertionError("a read began while its slot was still copied from")
    order = np.argsort(t.read_start, kind="stable")
    began, over = t.read_start[order], np.sort(t.read_done)
    if len(began) > r.depth and (began[r.depth :] < over[: -r.depth]).any():
        raise AssertionError("more reads were in flight than the disk's queue takes")
    if r.hits + len(r.bytes) != r.lookups or (plan.copy_kind <= PREFETCH).sum() != r.lookups:
        raise AssertionError("host memory's hits and reads are not the copies")
