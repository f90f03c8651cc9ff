"""Naive offload: every expert is copied in for its call and dropped after it."""

from typing import ClassVar

import numpy as np

from uvmsim.machine.timing import copy_times, dense_times, expert_times, write_back_times
from uvmsim.mechanisms.base import Planned
from uvmsim.runs.job import DoesNotFit, Job, counters_without_pool, fixed_bytes
from uvmsim.runs.plan import DEMAND, WRITEBACK, Plan, finish


class StreamExperts(Planned):
    """One expert at a time: copy in, compute, drop (with --write-back: copy out), nothing overlaps."""

    name: ClassVar[str] = "stream"

    def plan(self, job: Job) -> Plan:
        w, hw = job.workload, job.hardware
        needed = fixed_bytes(job) + max(job.model.expert_bytes)
        if needed > hw.vram_bytes:
            raise DoesNotFit(needed, hw.vram_bytes, "dense weights and one expert")
        event, hi, served = self._waves(job)
        n = len(served)
        size = np.asarray(job.model.expert_bytes, np.int64)[w.ids // w.n_experts]
        if job.write_back:
            # Copy 2a brings access a's expert, 2a + 1 takes it away again before the next comes.
            nbytes = np.repeat(size, 2)
            kind = np.tile(np.array([DEMAND, WRITEBACK], np.int8), len(size))
            after = np.arange(-1, 2 * len(size) - 1, dtype=np.int64)
            # The write-back follows the compute, so it is queued with the wave after it.
            copy_hi = np.maximum(2 * np.cumsum(served) - 1, 0)
            copy_hi[-1:] = 2 * len(size)
            ns = copy_times(nbytes, hw, "h2d", job.pinned, False)
            back = kind == WRITEBACK
            ns[back] = write_back_times(nbytes[back], hw, job.pinned, False, job.write_back_alloc)
        else:
            nbytes, kind = size, np.full(len(size), DEMAND, np.int8)
            after = np.full(len(size), -1, np.int64)
            copy_hi = np.cumsum(served)
            ns = copy_times(nbytes, hw, "h2d", job.pinned, False)
        hit = np.zeros(len(w.ids), np.uint8)
        pre, tail = dense_times(w, job.model, hw)
        first = np.concatenate(([True], np.diff(event) != 0))
        plan = Plan(
            wave_event=event,
            wave_hi=hi,
            pre_ns=np.where(first, pre[event], 0),
            cpu_ns=np.zeros(n, np.int64),
            compute_ns=expert_times(w, job.model, hw, hi),
            wave_copy_hi=copy_hi.astype(np.int64),
            wave_wait_hi=np.zeros(n, np.int64),
            copy_bytes=nbytes,
            copy_kind=kind,
            copy_after=after,
            copy_ns=ns,
            waits=np.zeros(0, np.int64),
            step_wave_hi=np.zeros(0, np.int64),
            hit=hit,
            counters=counters_without_pool(job, hit),
            slots=1,
        )
        return finish(plan, w, tail)

    def _waves(self, job: Job) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One wave an access, and an empty one for an event without any: event and accesses served
        so far of each wave, and whether it serves one."""
        w = job.workload
        per_event = np.diff(w.event_lo)
        event = np.repeat(np.arange(w.n_events, dtype=np.int32), np.maximum(per_event, 1))
        served = (per_event > 0)[event]
        return event, np.cumsum(served).astype(np.int64), served
