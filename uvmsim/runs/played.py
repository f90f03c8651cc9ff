"""What a plan and its timeline say of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from uvmsim.runs.disk import check_reads, disk_wait
from uvmsim.runs.outcome import Outcome, share
from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK, Plan
from uvmsim.runs.timeline import Timeline


@dataclass(frozen=True)
class Played:
    """A plan that a clock has played."""

    plan: Plan
    timeline: Timeline

    def measures(self, run: Outcome) -> dict[str, Any]:
        """Counters, bytes, prefetches, times."""
        plan, t = self.plan, self.timeline
        c = plan.counters
        late = late_waits(plan, t)
        h2d = plan.copy_kind != WRITEBACK
        bypassed = {"accesses": c.bypassed, "hits": c.bypassed_hits}
        return {
            **run.counts(),
            **({"bypassed": bypassed} if c.bypassed else {}),
            **({"misses_by": c.misses_by} if c.misses_by else {}),
            "bytes_h2d": plan.bytes_of(DEMAND) + plan.bytes_of(PREFETCH) + plan.bytes_zero_copy,
            "bytes_d2h": plan.bytes_of(WRITEBACK),
            "bytes_prefetched": plan.bytes_of(PREFETCH),
            "prefetch": {
                "issued": c.prefetch_issued,
                "useful": c.prefetch_used - late,
                "late": late,
                "wasted": c.prefetch_wasted,
            },
            **run.speeds(),
            "time_split_s": time_split(plan, t),
            **({"ram": plan.reads.measures()} if plan.reads is not None else {}),
            "link_utilisation": share(int(plan.copy_ns[h2d].sum()), int(t.step_end[-1])),
            "notes": plan.notes,
        }

    def counted(self, steps: np.ndarray) -> dict[str, Any]:
        """Bytes over the link in some forward passes (bool [S])."""
        plan = self.plan
        wave = np.searchsorted(plan.wave_copy_hi, np.arange(len(plan.copy_bytes)), side="right")
        mine = steps[np.searchsorted(plan.step_wave_hi, wave, side="right")]
        back = plan.copy_kind == WRITEBACK
        zero = int(plan.zero_copy_step[steps].sum()) if plan.zero_copy_step is not None else 0
        return {
            "bytes_h2d": int(plan.copy_bytes[mine & ~back].sum()) + zero,
            "bytes_d2h": int(plan.copy_bytes[mine & back].sum()),
            "chunks_in": None,
            "chunks_out": None,
            "services_per_chunk": None,
        }


def check(run: Played) -> None:
    """Invariants of every finished run (INVARIANTS.md 1 and 3), asserted on real work too."""
    plan, t = run.plan, run.timeline
    c = plan.counters
    if int(plan.hit.sum()) != c.hits or len(plan.hit) != c.accesses:
        raise AssertionError("hits + misses are not the accesses")
    if c.prefetch_used + c.prefetch_wasted != c.prefetch_issued:
        raise AssertionError("a prefetch is neither used nor wasted")
    took, cut = t.copy_done - t.copy_start, np.zeros(len(plan.copy_ns), np.bool_)
    if plan.piece_ns:
        cut = (plan.copy_kind == PREFETCH) & (plan.copy_ns > plan.piece_ns)
    if (took[~cut] != plan.copy_ns[~cut]).any() or (took[cut] < plan.copy_ns[cut]).any():
        raise AssertionError("a copy took another time than planned")
    if plan.reads is not None:
        check_reads(plan, t)
    if len(t.step_end) and (t.step_end[1:] < t.step_end[:-1]).any():
        raise AssertionError("the clock ran backwards")


def late_waits(plan: Plan, t: Timeline) -> int:
    """Prefetched experts that were asked for before they had arrived."""
    wave = np.searchsorted(plan.wave_wait_hi, np.arange(len(plan.waits)), side="right")
    return int((t.copy_done[plan.waits] > t.wave_open[wave]).sum())


def time_split(plan: Plan, t: Timeline) -> dict[str, float]:
    """Where the time went, in seconds: the GPU computing, the GPU waiting for CPU experts, for reads
    from the disk that its wave needs, for its own wave's copies (transfer), and for a link busy with
    something else (queueing)."""
    wait = t.wave_ready - t.wave_open
    cpu = np.minimum(wait, plan.cpu_ns)
    disk = np.maximum(disk_wait(plan, t) - cpu, 0)
    link = wait - cpu - disk
    demand = np.where(plan.copy_kind == DEMAND, plan.copy_ns, 0)
    total = np.concatenate(([0], np.cumsum(demand)))
    own = np.diff(total[plan.wave_copy_hi], prepend=0)
    transfer = np.minimum(link, own)
    return {
        "compute": float(plan.pre_ns.sum() + plan.compute_ns.sum()) / 1e9,
        "cpu": float(cpu.sum()) / 1e9,
        **({"disk": float(disk.sum()) / 1e9} if plan.reads is not None else {}),
        "transfer": float(transfer.sum()) / 1e9,
        "queueing": float((link - transfer).sum()) / 1e9,
    }
