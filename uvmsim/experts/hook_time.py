"""What a policy's hooks cost the host, measured on this machine: a clever slow policy shall not win on
paper.

Decisions are asked for as in a run, with the policy and with plain LRU, and what the policy takes
longer is its own: an engine's `decision_ns` was calibrated with LRU and holds the rest. What is
measured during a run is no function of the input, so it is added only where it is asked for
(`Job.policy_time`); what the machine's description tells (``[policy_ns]``, of `uvmsim calibrate`)
always is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from uvmsim.experts.decisions import Decisions
from uvmsim.policies.registry import PolicySpec, builtin, parse
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
    where: str = "here"
    """Where it was measured, for people."""

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
            f"{name}: its hooks take {' and '.join(told)} more than lru's {self.where}; added to each "
            "layer"
        )


def hook_time(job: Job, rounds: np.ndarray | None = None) -> HookTime:
    """Measure the hooks of the job's policy on its first `STEPS` forward passes, the least of all
    rounds. ``rounds``: what `hook_times` gave. Raises `InputError` as a run does."""
    rounds = hook_times(job) if rounds is None else rounds
    prefill, decode = (float(x) for x in rounds.min(axis=0))
    return HookTime(prefill, decode)


def hook_times(job: Job) -> np.ndarray:
    """float64 [`ROUNDS`, 2]: what the hooks take beyond LRU's least, ns a token of one layer's event,
    prefill and decode, at least none; NaN where the trace has none of it."""
    mine, plain = _per_token(job), _per_token(replace(job, policy=parse("lru")))
    return np.maximum(mine - plain.min(axis=0), 0)


def told_hook_time(job: Job) -> HookTime | None:
    """What the machine's description says of the job's policy, eviction and prefetch together; None
    where it says nothing. A bound that is given the future decides in no time."""
    policy, times = job.policy, job.hardware.policy_ns
    if not times or not isinstance(policy, PolicySpec) or "next_use" in policy.needs:
        return None
    parts = [x for x in (policy.eviction, policy.prefetch) if x is not None]
    if not all(x.name in times and builtin().get(x.name) is type(x) for x in parts):
        return None
    mine = [times[x.name] for x in parts]
    return HookTime(
        float(sum(x.prefill_ns for x in mine)), float(sum(x.decode_ns for x in mine)),
        f"on the host of {job.hardware.name}",
    )  # fmt: skip


def told_note(job: Job) -> list[str]:
    """What people are told of the description's host times: what was added, or that nothing was."""
    policy = job.policy
    if not job.hardware.policy_ns or job.policy_time or not isinstance(policy, PolicySpec):
        return []
    found = told_hook_time(job)
    if found is None:
        if "next_use" in policy.needs:
            return []
        return [
            f"{policy.name}: {job.hardware.name} has no host time of it in [policy_ns], so it "
            "decides in no time; --policy-time measures it here"
        ]
    return [found.note(job)] if found.prefill or found.decode else []


def _per_token(job: Job) -> np.ndarray:
    """float64 [`ROUNDS`, 2]: ns a token of one layer's event, prefill and decode; NaN where there is
    none."""
    w = job.workload
    last = int(np.searchsorted(w.event_step, STEPS))
    phase = w.step_phase[w.event_step[:last]]
    edges = [*(np.flatnonzero(np.diff(phase)) + 1).tolist(), last]
    rounds = np.zeros((ROUNDS, 2))
    tokens = np.bincount(phase, w.event_tokens[:last], minlength=2)
    for spent in rounds:
        decisions = Decisions(job)
        decisions.serve(1)  # compiles
        for edge in edges:
            kind = phase[edge - 1]
            while decisions.at < edge:
                begun = time.thread_time_ns()
                decisions.serve(edge)
                spent[kind] += time.thread_time_ns() - begun
    return np.divide(rounds, tokens, out=np.full_like(rounds, np.nan), where=tokens > 0)
