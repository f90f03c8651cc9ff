"""What a run came to, whoever ran it: planned and clocked, paged by the driver, or measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from traces.files.schema import DECODE, PREFILL
from uvmsim.policies.registry import PolicySpec
from uvmsim.runs.job import DoesNotFit, Job
from uvmsim.runs.plan import Counters
from uvmsim.workload import Workload

PERCENTILES = (50, 90, 99)
OK, OUT_OF_MEMORY, VOID = "ok", "out-of-memory", "void"


class Trail(Protocol):
    """What a run left behind, for those who look closer. Each way of running has its own."""

    def measures(self, run: Outcome) -> dict[str, Any]:
        """All numbers of the run as plain JSON types; times in seconds, bytes as whole numbers."""
        ...

    def counted(self, steps: np.ndarray) -> dict[str, Any]:
        """What crossed the link in some forward passes (bool [S]), and what the driver did for it
        (None where it did not run)."""
        ...


@dataclass
class Outcome:
    """One run. S forward passes; none where the model did not fit."""

    job: Job
    mechanism: str
    step_ns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [S]: duration of each forward pass."""
    counters: Counters | None = None
    """Hits and misses of experts; None where nobody counts them."""
    slots: int = 0
    """Expert slots in device memory, 0 where there are none."""
    trail: Trail | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What was wrong; a run with any is void."""
    does_not_fit: DoesNotFit | None = None
    about: dict[str, Any] = field(default_factory=dict)
    """What to say of the run beside the job: machine, options."""

    @property
    def status(self) -> str:
        """``ok``, ``out-of-memory`` or ``void``."""
        if self.does_not_fit is not None:
            return OUT_OF_MEMORY
        return VOID if self.problems else OK

    @property
    def policy(self) -> str | None:
        return self.job.policy_name

    @property
    def pooled(self) -> bool:
        """Whether a policy decided about a pool of experts."""
        return isinstance(self.job.policy, PolicySpec)

    @property
    def step_end(self) -> np.ndarray:
        """int64 [S]: when each forward pass ended, ns."""
        return np.cumsum(self.step_ns)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; times in seconds, bytes as whole numbers."""
        head = self.about | {"status": self.status}
        if self.does_not_fit is not None:
            return head | {
                "needed_bytes": self.does_not_fit.needed,
                "available_bytes": self.does_not_fit.available,
                "what": str(self.does_not_fit),
            }
        return head | self.measures()

    def measures(self) -> dict[str, Any]:
        """All numbers of a run that finished."""
        assert self.trail is not None
        return self.trail.measures(self)

    def counts(self) -> dict[str, Any]:
        """Hits and misses, and their rates by layer and phase."""
        c = self.counters
        assert c is not None
        hits, asked = c.layer_hits, c.layer_accesses
        return {
            "slots": self.slots,
            "accesses": c.accesses,
            "hits": c.hits,
            "misses": c.misses,
            "hit_rate": share(c.hits, c.accesses),
            "hit_rate_by_layer": [
                share(int(h), int(n)) for h, n in zip(hits.sum(0), asked.sum(0), strict=True)
            ],
            "prefill_hit_rate": share(int(hits[PREFILL].sum()), int(asked[PREFILL].sum())),
            "decode_hit_rate": share(int(hits[DECODE].sum()), int(asked[DECODE].sum())),
            "evictions": c.evictions,
        }

    def speeds(self) -> dict[str, Any]:
        """Times and tokens per second, in all and by phase; latencies."""
        w, ns = self.job.workload, self.step_ns
        seconds, tokens = float(ns.sum()) / 1e9, int(w.emitted.sum())
        made: dict[str, Any] = {
            "time_s": seconds, "tokens": tokens, "tokens_per_s": _rate(tokens, seconds),
        }  # fmt: skip
        for name, phase in (("prefill", PREFILL), ("decode", DECODE)):
            made |= phase_speed(name, phase, w, ns)
        made |= {"ttft_s": first_token(w, ns), "token_latency_ms": token_latency(w, ns)}
        return made | (together(w, ns) if self.job.decoding is not None else {})


def about_job(job: Job, mechanism: str) -> dict[str, Any]:
    """What a run of expert grain says of its question."""
    return {
        "policy": job.policy_name,
        "mechanism": mechanism,
        "model": job.model.name,
        "hardware": job.hardware.name,
        "vram_bytes": job.hardware.vram_bytes,
        "pool": job.pool,
        "unit": job.workload.unit,
        "reset": job.reset,
        "write_back": job.write_back,
        **({"prefetch_pieces": job.prefetch_pieces} if job.prefetch_pieces else {}),
        "seed": job.seed,
        **(job.decoding.to_json() if job.decoding is not None else {}),
    }


def phase_speed(name: str, phase: int, w: Workload, step_ns: np.ndarray) -> dict[str, Any]:
    """Tokens of a phase (rejected drafts are none), and tokens per second of its forward passes."""
    mine = w.step_phase == phase
    tokens, seconds = int(w.emitted[mine].sum()), float(step_ns[mine].sum()) / 1e9
    return {f"{name}_tokens": tokens, f"{name}_tokens_per_s": _rate(tokens, seconds)}


def first_token(w: Workload, step_ns: np.ndarray) -> float | None:
    """Seconds to the first token of the first sequence: the end of its prefill."""
    prefill = w.step_phase == PREFILL
    if w.passes is not None:  # the next slots' prompts are not waited for
        prefill = prefill & (w.step_seq == w.step_seq[:1])
    if not len(prefill) or not prefill[0]:
        return None
    passes = len(prefill) if prefill.all() else int(np.argmin(prefill))
    return float(step_ns[:passes].sum()) / 1e9


def token_latency(w: Workload, step_ns: np.ndarray) -> dict[str, float] | None:
    """Percentiles of the decode steps' durations (time per output token), in ms; where a step keeps
    several tokens of a sequence, shared out among them."""
    decode = step_ns[w.step_phase == DECODE]
    if w.passes is not None:
        p = w.passes
        decode = (step_ns * (p.sequences / p.emitted))[w.step_phase == DECODE]
    if not len(decode):
        return None
    values = np.percentile(decode, PERCENTILES) / 1e6
    return {f"p{p}": round(float(v), 6) for p, v in zip(PERCENTILES, values, strict=True)}


def together(w: Workload, step_ns: np.ndarray) -> dict[str, Any]:
    """What a decode step served on average, and the speed of one sequence while it was in a slot."""
    mine = w.step_phase == DECODE
    steps, tokens = int(mine.sum()), int(w.emitted[mine].sum())
    slots = w.passes.sequences[mine] if w.passes is not None else np.ones(steps, np.int32)
    events = mine[w.event_step]
    asked = int(np.diff(w.event_lo)[events].sum())
    computed = int(w.step_tokens[mine].sum())
    return {
        "decode_steps": steps,
        "sequences_per_step": share(int(slots.sum()), steps),
        "tokens_per_step": share(tokens, steps),
        "rejected_tokens": computed - tokens,
        "experts_per_layer": share(asked, int(events.sum())),
        "sequence_tokens_per_s": _rate(tokens, float((step_ns[mine] * slots).sum()) / 1e9),
    }


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 else None
