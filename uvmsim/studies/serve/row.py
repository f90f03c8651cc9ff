"""A served load as one row of plain numbers: what the client saw, and what the experts cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.files.schema import DECODE, PREFILL
from uvmsim.runs.outcome import share
from uvmsim.runs.played import Played
from uvmsim.serving import stream
from uvmsim.serving.answered import Answered
from uvmsim.serving.machine import Run
from uvmsim.serving.schedule import ZERO, Queue
from uvmsim.serving.streamed import Streamed

PHASES = (("prefill", PREFILL), ("decode", DECODE))


@dataclass(frozen=True)
class Cost:
    """Of the forward passes of one phase, the warm-up not counted. Passes with tokens of a prompt are
    prefill, whatever else they have."""

    passes: int
    tokens: int
    busy_ns: int
    accesses: int | None
    hits: int | None
    bytes_h2d: int
    bytes_d2h: int
    stall_ns: int | None
    """How long the GPU waited for experts."""

    def to_json(self) -> dict[str, Any]:
        return {
            "passes": self.passes,
            "tokens": self.tokens,
            "busy_s": self.busy_ns / 1e9,
            "hit_rate": None if self.accesses is None else share(self.hits or 0, self.accesses),
            "bytes_h2d": self.bytes_h2d,
            "bytes_d2h": self.bytes_d2h,
            "stall_s": None if self.stall_ns is None else self.stall_ns / 1e9,
        }


def answered(queue: Queue, warmup: bool) -> Answered:
    """What the client saw, from the start of its clock on."""
    first = int(warmup)
    zero = int(queue.n[ZERO])
    lo = queue.token_lo[first:]
    token_ns = queue.token_ns[lo[0] :] - zero
    lo = lo - lo[0]
    n = len(lo) - 1
    return Answered(
        queue.arrival[first:].astype(np.int64), queue.sent[first:] - zero, token_ns[lo[:-1]],
        token_ns[lo[1:] - 1], queue.prompt[first:], queue.output[first:], np.ones(n, bool),
        token_ns, lo,
    )  # fmt: skip


def costs_of_stream(s: Streamed) -> dict[str, Cost]:
    """By phase."""
    found = {}
    for name, phase in PHASES:
        c = s.sums[phase].tolist()
        found[name] = Cost(
            c[stream.PASSES], c[stream.TOKENS], c[stream.BUSY_NS], c[stream.ACCESSED],
            c[stream.HIT], c[stream.BYTES], 0,
            c[stream.STALL_NS],
        )  # fmt: skip
    return found


def costs_of_run(run: Run) -> dict[str, Cost]:
    """By phase."""
    w = run.outcome.job.workload
    end = np.cumsum(run.pass_ns + run.schedule.idle)
    measured = end > run.schedule.zero_ns
    trail = run.outcome.trail
    assert trail is not None
    found = {}
    for name, phase in PHASES:
        mine = measured & (w.step_phase == phase)
        counted = trail.counted(mine)
        accesses = hits = stall = None
        if isinstance(trail, Played):
            accesses, hits, stall = _of_plan(trail, w, mine)
        found[name] = Cost(
            int(mine.sum()), int(w.step_tokens[mine].sum()), int(run.pass_ns[mine].sum()),
            accesses, hits, counted["bytes_h2d"], counted["bytes_d2h"], stall,
        )  # fmt: skip
    return found


def _of_plan(trail: Played, w: Any, mine: np.ndarray) -> tuple[int, int, int]:
    """Accesses, hits and ns waited for of some forward passes (bool [S])."""
    plan, t = trail.plan, trail.timeline
    asked = mine[w.event_step[w.access_event]]
    wave = mine[w.event_step[plan.wave_event]]
    waited = (t.wave_ready - t.wave_open)[wave].sum()
    return int(asked.sum()), int(plan.hit[asked].sum()), int(waited)
