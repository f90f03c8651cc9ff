"""Who waits for whom where several GPUs share a model: gates between waves, and hops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uvmsim.experts.shares import Share
from uvmsim.machine.peer import Peer
from uvmsim.runs.job import Job
from uvmsim.runs.joint import ENDED, OPENED, Gate, JointPlan
from uvmsim.runs.plan import Plan

ACTIVATION_BYTES = 4
"""Of one value that goes from device to device: float32."""
TOKEN_BYTES = 4
"""Of a token that goes back to the first device: int32."""


@dataclass
class Device:
    """A share, what was decided for it, and when."""

    share: Share
    plan: Plan
    first: np.ndarray
    """int64 [E of the run]: first wave of each event, -1 where it has none."""
    last: np.ndarray
    """The last."""


def device_of(share: Share, plan: Plan) -> Device:
    events = int(share.events.max(initial=-1)) + 1
    waves = share.events[plan.wave_event]
    number = np.arange(len(waves))
    first, last = np.full(events, -1), np.full(events, -1)
    first[waves[::-1]] = number[::-1]
    last[waves] = number
    return Device(share, plan, first, last)


def peer_of(job: Job) -> Peer:
    """The way between two cards of a job."""
    return job.peer or Peer.of(None, job.hardware)


def activation_bytes(job: Job) -> int:
    """Of one token between two layers; 0 where the model's width is not known."""
    return ACTIVATION_BYTES * (job.model.n_embd or 0)


def hop_ns(job: Job) -> np.ndarray:
    """int64 [S]: activations of a step's tokens from one device to another."""
    peer, wide = peer_of(job), activation_bytes(job)
    return np.array([peer.ns(wide * n) for n in job.workload.step_tokens.tolist()], np.int64)


def home_ns(job: Job) -> np.ndarray:
    """int64 [S]: the tokens that a step has chosen, from the last device to the first."""
    peer = peer_of(job)
    return np.array([peer.ns(TOKEN_BYTES * n) for n in job.workload.step_tokens.tolist()], np.int64)


def in_turn(
    joint: JointPlan, devices: list[Device], hop: np.ndarray, tail: np.ndarray, job: Job
) -> None:
    """Layers one after the other: where the device changes the activations go along; after a step its
    tokens go back to the first."""
    w = job.workload
    step = w.event_step
    owner = np.zeros(w.n_events, np.int64)
    for i, d in enumerate(devices):
        owner[d.share.events] = i
    ends = np.searchsorted(step, np.arange(w.n_steps), side="right") - 1
    home = home_ns(job).tolist()
    for s, e in enumerate(ends.tolist()):
        i = int(owner[e])
        wave = int(devices[i].last[e])
        joint.plans[i].compute_ns[wave] += tail[s]
        joint.step_gates.append([Gate(i, wave, ENDED, home[s] if i else 0)])
    for s, e in enumerate((ends[:-1] + 1).tolist()):
        i = int(owner[e])
        joint.gates[i][int(devices[i].first[e])] = joint.step_gates[s]
    within = np.flatnonzero((np.diff(owner) != 0) & (np.diff(step) == 0)) + 1
    for e in within.tolist():
        i, before = int(owner[e]), int(owner[e - 1])
        gate = Gate(before, int(devices[before].last[e - 1]), ENDED, int(hop[step[e]]))
        joint.gates[i][int(devices[i].first[e])] = [gate]
    tokens = w.step_tokens.astype(np.int64)
    joint.hop_bytes = activation_bytes(job) * int(tokens[step[within]].sum())
    joint.hop_bytes += TOKEN_BYTES * int(tokens[owner[ends] > 0].sum())


def side_by_side(
    joint: JointPlan, devices: list[Device], hop: np.ndarray, tail: np.ndarray, job: Job
) -> None:
    """Experts of a layer side by side: its activations go to all, results come back to the first, which
    then goes on."""
    w = job.workload
    home, others = devices[0], list(enumerate(devices))[1:]
    if not others:
        in_turn(joint, devices, hop, tail, job)
        return
    busy = {i: np.diff(d.share.job.workload.event_lo) > 0 for i, d in others}
    hops = hop[w.event_step].tolist()
    at_step_end = np.append(np.diff(w.event_step) != 0, True)
    tails = _with_tails(home, np.flatnonzero(at_step_end), tail)
    for e in range(w.n_events):
        back = []
        for i, d in others:
            opening = Gate(0, int(home.first[e]), OPENED, hops[e])
            joint.gates[i][int(d.first[e])] = [opening]
            if busy[i][e]:
                back.append(Gate(i, int(d.last[e]), ENDED, hops[e]))
        follower = tails[e] if at_step_end[e] else int(home.first[e + 1])
        if back:
            joint.gates[0][follower] = back
        if at_step_end[e]:
            joint.step_gates.append([Gate(0, follower, ENDED, 0)])
    tokens = w.step_tokens[w.event_step].astype(np.int64)
    moved = sum(int(tokens.sum()) + int(tokens[busy[i]].sum()) for i, _ in others)
    joint.hop_bytes = activation_bytes(job) * moved


def _with_tails(home: Device, ends: np.ndarray, tail: np.ndarray) -> dict[int, int]:
    """Give a device a wave after each event of ``ends``, with the work that follows a step's last
    layer; returns their numbers by event."""
    plan = home.plan
    at = home.last[ends] + 1
    for name in ("wave_event", "wave_hi", "wave_copy_hi", "wave_wait_hi"):
        old = getattr(plan, name)
        setattr(plan, name, np.insert(old, at, old[at - 1]))
    for name in ("cpu_ns", "compute_ns"):
        setattr(plan, name, np.insert(getattr(plan, name), at, 0))
    plan.pre_ns = np.insert(plan.pre_ns, at, tail)
    before = np.searchsorted(ends, np.arange(len(home.first)))
    home.first = home.first + before
    home.last = home.last + before
    return dict(zip(ends.tolist(), (at + np.arange(len(at))).tolist(), strict=True))
