"""What a replay returns: the simulator's fields, measured, and whether the run can be believed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replay.backend.base import BACK, DEMAND, PREFETCH
from replay.meter import Measured
from traces.files.schema import DECODE, PREFILL
from uvmsim.runs.job import DoesNotFit, Job
from uvmsim.runs.outcome import PERCENTILES
from uvmsim.runs.plan import Counters


@dataclass
class Moved:
    """Bytes a run moved, by what for."""

    demand: int = 0
    prefetch: int = 0
    back: int = 0
    zero_copy: int = 0


@dataclass
class ReplayResult:
    """One run. ``measured`` and ``counters`` are None where the model did not fit."""

    job: Job
    mode: str
    machine: dict[str, Any]
    counters: Counters | None = None
    measured: Measured | None = None
    moved: Moved = field(default_factory=Moved)
    slots: int = 0
    verified: bool = False
    """Every output of the run and every expert's bytes after it were checked, and right."""
    problems: list[str] = field(default_factory=list)
    """What was wrong; a run with any is void."""
    notes: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    """How it was run: dtype, split, pinned, shared images, run-ahead, ..."""
    does_not_fit: DoesNotFit | None = None

    @property
    def policy(self) -> str | None:
        return self.job.policy.name if self.job.policy else None

    @property
    def step_ns(self) -> np.ndarray:
        """int64 [S]: duration of each forward pass on the compute stream."""
        assert self.measured is not None
        return self.measured.step_ns

    @property
    def busy_ns(self) -> dict[str, int] | None:
        """By direction and purpose, how long copies ran; None where only steps were timed."""
        if self.measured is None or self.measured.busy_ns is None:
            return None
        busy = self.measured.busy_ns
        return {"demand": busy[DEMAND], "prefetch": busy[PREFETCH], "back": busy[BACK]}

    def to_json(self) -> dict[str, Any]:
        """The fields of `uvmsim.runs.outcome.Result.to_json`, and what only a measurement has."""
        job = self.job
        head: dict[str, Any] = {
            "policy": self.policy,
            "mechanism": self.mode,
            "model": job.model.name,
            "hardware": job.hardware.name,
            "vram_bytes": job.hardware.vram_bytes,
            "pool": job.pool,
            "unit": job.workload.unit,
            "reset": job.reset,
            "write_back": job.write_back,
            "seed": job.seed,
            "machine": self.machine,
            "options": self.options,
            "verified": self.verified,
            "problems": self.problems,
            "notes": self.notes,
        }
        if self.does_not_fit is not None:
            return head | {
                "status": "out-of-memory",
                "needed_bytes": self.does_not_fit.needed,
                "available_bytes": self.does_not_fit.available,
                "what": str(self.does_not_fit),
            }
        status = "void" if self.problems else "ok"
        return head | {"status": status} | self._counts() | self._times()

    def _counts(self) -> dict[str, Any]:
        c = self.counters
        assert c is not None
        hits, asked = c.layer_hits, c.layer_accesses
        return {
            "slots": self.slots,
            "accesses": c.accesses,
            "hits": c.hits,
            "misses": c.misses,
            "hit_rate": _share(c.hits, c.accesses),
            "hit_rate_by_layer": [
                _share(int(h), int(n)) for h, n in zip(hits.sum(0), asked.sum(0), strict=True)
            ],
            "prefill_hit_rate": _share(int(hits[0].sum()), int(asked[0].sum())),
            "decode_hit_rate": _share(int(hits[1].sum()), int(asked[1].sum())),
            "evictions": c.evictions,
            "bytes_h2d": self.moved.demand + self.moved.prefetch + self.moved.zero_copy,
            "bytes_d2h": self.moved.back,
            "bytes_prefetched": self.moved.prefetch,
            "prefetch": {
                "issued": c.prefetch_issued,
                "used": c.prefetch_used,
                "wasted": c.prefetch_wasted,
            },
        }

    def _times(self) -> dict[str, Any]:
        m, w = self.measured, self.job.workload
        assert m is not None
        seconds = float(m.step_ns.sum()) / 1e9
        tokens = int(w.step_tokens.sum())
        d: dict[str, Any] = {"time_s": seconds, "tokens": tokens}
        d["tokens_per_s"] = _rate(tokens, seconds)
        for name, phase in (("prefill", PREFILL), ("decode", DECODE)):
            mine = w.step_phase == phase
            n = int(w.step_tokens[mine].sum())
            d[f"{name}_tokens"] = n
            d[f"{name}_tokens_per_s"] = _rate(n, float(m.step_ns[mine].sum()) / 1e9)
        d["ttft_s"] = None
        if w.n_steps and w.step_phase[0] == PREFILL:
            decode = np.flatnonzero(w.step_phase != PREFILL)
            last = int(decode[0]) if len(decode) else w.n_steps
            d["ttft_s"] = float(m.step_ns[:last].sum()) / 1e9
        latency = m.step_ns[w.step_phase == DECODE]
        d["token_latency_ms"] = None
        if len(latency):
            values = np.percentile(latency, PERCENTILES) / 1e6
            d["token_latency_ms"] = {
                f"p{p}": round(float(v), 6) for p, v in zip(PERCENTILES, values, strict=True)
            }
        d["host_issue_s"] = float(m.issue_ns.sum()) / 1e9
        d["time_split_s"] = None
        if m.stall_ns is not None and m.transfer_ns is not None:
            stall, transfer = float(m.stall_ns.sum()) / 1e9, float(m.transfer_ns.sum()) / 1e9
            d["time_split_s"] = {
                "compute": seconds - stall,
                "cpu": 0.0,
                "transfer": transfer,
                "queueing": stall - transfer,
            }
            busy = self.busy_ns
            assert busy is not None
            d["copy_busy_s"] = {k: v / 1e9 for k, v in busy.items()}
            link = (busy["demand"] + busy["prefetch"]) / 1e9
            d["link_utilisation"] = min(1.0, link / seconds) if seconds else None
        return d


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 else None
