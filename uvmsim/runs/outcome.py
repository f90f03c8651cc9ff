"""What a run returns: counters, bytes and times, ready to be written as one JSON object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.files.schema import DECODE, PREFILL
from uvmsim.runs.job import DoesNotFit, Job
from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK, Counters, Plan
from uvmsim.runs.timeline import Timeline

PERCENTILES = (50, 90, 99)


@dataclass
class Result:
    """One run. ``plan`` and ``timeline`` are None where the model did not fit."""

    job: Job
    mechanism: str
    plan: Plan | None
    timeline: Timeline | None
    does_not_fit: DoesNotFit | None = None

    @property
    def policy(self) -> str | None:
        return self.job.policy.name if self.job.policy else None

    @property
    def step_end(self) -> np.ndarray:
        """int64 [S]: when each forward pass ended, ns."""
        assert self.timeline is not None
        return self.timeline.step_end

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; times in seconds, bytes as whole numbers."""
        head: dict[str, Any] = {
            "policy": self.policy,
            "mechanism": self.mechanism,
            "model": self.job.model.name,
            "hardware": self.job.hardware.name,
            "vram_bytes": self.job.hardware.vram_bytes,
            "pool": self.job.pool,
            "unit": self.job.workload.unit,
            "reset": self.job.reset,
            "write_back": self.job.write_back,
            "seed": self.job.seed,
        }
        if self.plan is None or self.timeline is None:
            assert self.does_not_fit is not None
            return head | {
                "status": "out-of-memory",
                "needed_bytes": self.does_not_fit.needed,
                "available_bytes": self.does_not_fit.available,
                "what": str(self.does_not_fit),
            }
        return head | {"status": "ok"} | measures(self.job, self.plan, self.timeline)


def measures(job: Job, plan: Plan, t: Timeline) -> dict[str, Any]:
    """All numbers of a run that has a timeline."""
    w, c = job.workload, plan.counters
    duration = np.diff(t.step_end, prepend=0)
    seconds = float(t.step_end[-1]) / 1e9 if len(t.step_end) else 0.0
    late = late_waits(plan, t)
    h2d = plan.copy_kind != WRITEBACK
    return {
        "slots": plan.slots,
        "accesses": c.accesses,
        "hits": c.hits,
        "misses": c.misses,
        "hit_rate": share(c.hits, c.accesses),
        "hit_rate_by_layer": [
            share(int(h), int(n))
            for h, n in zip(c.layer_hits.sum(0), c.layer_accesses.sum(0), strict=True)
        ],
        "prefill_hit_rate": share(int(c.layer_hits[0].sum()), int(c.layer_accesses[0].sum())),
        "decode_hit_rate": share(int(c.layer_hits[1].sum()), int(c.layer_accesses[1].sum())),
        "evictions": c.evictions,
        **_bypassed(c),
        "bytes_h2d": plan.bytes_of(DEMAND) + plan.bytes_of(PREFETCH) + plan.bytes_zero_copy,
        "bytes_d2h": plan.bytes_of(WRITEBACK),
        "bytes_prefetched": plan.bytes_of(PREFETCH),
        "prefetch": {
            "issued": c.prefetch_issued,
            "useful": c.prefetch_used - late,
            "late": late,
            "wasted": c.prefetch_wasted,
        },
        "time_s": seconds,
        "tokens": int(w.step_tokens.sum()),
        "tokens_per_s": _rate(int(w.step_tokens.sum()), seconds),
        **phase_measures("prefill", PREFILL, job, duration),
        **phase_measures("decode", DECODE, job, duration),
        "ttft_s": _first_token(job, t),
        "token_latency_ms": token_latency(job, duration),
        "time_split_s": time_split(plan, t),
        "link_utilisation": share(int(plan.copy_ns[h2d].sum()), int(t.step_end[-1])),
        "notes": plan.notes,
    }


def _bypassed(c: Counters) -> dict[str, Any]:
    """Accesses that were served beside the pool, for policies that do that."""
    return {"bypassed": {"accesses": c.bypassed, "hits": c.bypassed_hits}} if c.bypassed else {}


def late_waits(plan: Plan, t: Timeline) -> int:
    """Prefetched experts that were asked for before they had arrived."""
    wave = np.searchsorted(plan.wave_wait_hi, np.arange(len(plan.waits)), side="right")
    return int((t.copy_done[plan.waits] > t.wave_open[wave]).sum())


def time_split(plan: Plan, t: Timeline) -> dict[str, float]:
    """Where the time went, in seconds: the GPU computing, the GPU waiting for CPU experts, for its
    own wave's copies (transfer), and for a link busy with something else (queueing)."""
    wait = t.wave_ready - t.wave_open
    cpu = np.minimum(wait, plan.cpu_ns)
    link = wait - cpu
    demand = np.where(plan.copy_kind == DEMAND, plan.copy_ns, 0)
    total = np.concatenate(([0], np.cumsum(demand)))
    own = np.diff(total[plan.wave_copy_hi], prepend=0)
    transfer = np.minimum(link, own)
    return {
        "compute": float(plan.pre_ns.sum() + plan.compute_ns.sum()) / 1e9,
        "cpu": float(cpu.sum()) / 1e9,
        "transfer": float(transfer.sum()) / 1e9,
        "queueing": float((link - transfer).sum()) / 1e9,
    }


def phase_measures(name: str, phase: int, job: Job, duration: np.ndarray) -> dict[str, Any]:
    w = job.workload
    mine = w.step_phase == phase
    tokens, seconds = int(w.step_tokens[mine].sum()), float(duration[mine].sum()) / 1e9
    return {f"{name}_tokens": tokens, f"{name}_tokens_per_s": _rate(tokens, seconds)}


def _first_token(job: Job, t: Timeline) -> float | None:
    """Time to the first token of the first sequence: the end of its prefill."""
    prefill = job.workload.step_phase == PREFILL
    if not len(prefill) or not prefill[0]:
        return None
    last = int(np.argmin(prefill)) - 1 if not prefill.all() else len(prefill) - 1
    return float(t.step_end[last]) / 1e9


def token_latency(job: Job, duration: np.ndarray) -> dict[str, float] | None:
    """Percentiles of the decode steps' durations (time per output token), in ms."""
    decode = duration[job.workload.step_phase == DECODE]
    if not len(decode):
        return None
    values = np.percentile(decode, PERCENTILES) / 1e6
    return {f"p{p}": round(float(v), 6) for p, v in zip(PERCENTILES, values, strict=True)}


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 else None
