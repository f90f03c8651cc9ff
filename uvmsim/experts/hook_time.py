"""What a policy's hooks cost the host, measured on this machine: a clever slow policy shall not win on
paper.

Decisions are asked for as in a run, with the policy and with plain LRU, and what the policy takes
longer is its own: an engine's `decision_ns` was calibrated with LRU and holds the rest. Measured time
is no function of the input, so it is added only where it is asked for (`Job.policy_time`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from uvmsim.experts.decisions import Decisions
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job

STEPS = 1000
"""Forward passes that are measured."""
ROUNDS = 3
"""Times they are; the least time of this thread counts: whatever disturbs it makes it longer."""
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class HookTime:
    """Host time of a policy's hooks beyond LRU's, ns a token of one layer's event, by phase; NaN where
    the trace has none of it."""

    prefill: float
    decode: float

    def by_event(self, job: Job) -> np.ndarray:
        """int64 [events]: ns of each event of the job."""
        w = job.workload
        rate = np.array([self.prefill, self.decode])[w.step_phase[w.event_step]]
        return np.rint(np.nan_to_num(rate) * w.event_tokens).astype(np.int64)

    def note(self, job: Job) -> str:
        """One line for people."""
        n = job.workload.n_layers
        told = [
            f"{ns * n / 1e3:,.1f} us a {phase} token"
            for phase, ns in zip(PHASES, (self.prefill, self.decode), strict=True)
            if not np.isnan(ns)
        ]
        name = job.policy.name if job.policy else ""
        return (
            f"{name}: its hooks take {' and '.join(told)} more than lru's here; added to each layer"
        )


def hook_time(job: Job) -> HookTime:
    """Measure the hooks of the job's policy on its first `STEPS` forward passes. Raises `InputError`
    as a run does."""
    mine, plain = _per_token(job), _per_token(replace(job, policy=parse("lru")))
    prefill, decode = (float(x) for x in np.maximum(mine - plain, 0))
    return HookTime(prefill, decode)


def _per_token(job: Job) -> np.ndarray:
    """float64 [2]: ns a token of one layer's event, prefill and decode; NaN where there is none."""
    w = job.workload
    last = int(np.searchsorted(w.event_step, STEPS))
    phase = w.step_phase[w.event_step[:last]]
    edges = [*(np.flatnonzero(np.diff(phase)) + 1).tolist(), last]
    best = np.full(2, np.inf)
    tokens = np.bincount(phase, w.event_tokens[:last], minlength=2)
    for _ in range(ROUNDS):
        decisions, spent = Decisions(job), np.zeros(2)
        decisions.serve(1)  # compiles
        for edge in edges:
            kind = phase[edge - 1]
            while decisions.at < edge:
                begun = time.thread_time_ns()
                decisions.serve(edge)
                spent[kind] += time.thread_time_ns() - begun
        best = np.minimum(best, spent)
    return np.divide(best, tokens, out=np.full(2, np.nan), where=tokens > 0)
