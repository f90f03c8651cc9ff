"""An expert cache on several GPUs: by layers, by experts, or one pool with others' memory behind it.

Every device's decisions are those of `uvmsim.experts.decisions` on its share of the accesses, so
counters are exact whatever the times; docs/several-gpus.md has the rules of time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from traces.errors import InputError
from uvmsim.clocks import joint_clock
from uvmsim.experts.decisions import Decisions, Served
from uvmsim.experts.second_tier import DROPPED, PEER, Tiers, by_tier
from uvmsim.experts.shares import Share, shares_of
from uvmsim.machine.model import Model
from uvmsim.machine.timing import copy_times, dense_times, expert_times, write_back_times
from uvmsim.mechanisms.base import Mechanism
from uvmsim.mechanisms.expert_cache import unpriced
from uvmsim.mechanisms.gates import (
    Device,
    device_of,
    hop_ns,
    in_turn,
    peer_of,
    side_by_side,
)
from uvmsim.policies.kinds import EXPERTS as EXPERT_POLICIES
from uvmsim.policies.kinds import PolicyKind
from uvmsim.policies.registry import PolicySpec, asks
from uvmsim.runs.job import DoesNotFit, Job, expert_slots
from uvmsim.runs.joint import (
    JointlyPlayed,
    JointPlan,
    check_joint,
)
from uvmsim.runs.llama_times import llama_model
from uvmsim.runs.outcome import Outcome, about_job
from uvmsim.runs.plan import WRITEBACK, Counters, Plan
from uvmsim.runs.splits import LAYERS, POOL, POPULARITY


class MultiGpu(Mechanism):
    """Expert caches on several GPUs of one kind, each with its own pool of slots."""

    name: ClassVar[str] = "multi-gpu"
    decides: ClassVar[PolicyKind | None] = EXPERT_POLICIES

    def run(self, job: Job, clock: str = "fast", record: bool = False) -> Outcome:
        play = joint_clock(clock)
        peer = peer_of(job)
        about = about_job(job, self.name) | {
            "split": job.split, "peer": str(peer), "shared_link": job.shared_link,
        }  # fmt: skip
        try:
            plan = joint_plan(job)
        except DoesNotFit as err:
            return Outcome(job, self.name, does_not_fit=err, about=about)
        trail = JointlyPlayed(plan, play(plan))
        check_joint(trail)
        return Outcome(
            job, self.name, np.diff(trail.timeline.step_end, prepend=0), plan.counters,
            sum(plan.slots), trail, plan.notes, about=about,
        )  # fmt: skip


def joint_plan(job: Job) -> JointPlan:
    """What the devices of a job do. Raises `DoesNotFit`, `InputError`."""
    refuse(job)
    hw = job.hardware
    found: tuple[np.ndarray, np.ndarray] | None = None
    if job.split == POOL:
        only, where, also = _pooled(job)
        devices, found = [only], (where, also)
    else:
        devices = [device_of(s, unpriced(Decisions(s.job), s.job)) for s in shares_of(job)]
    pre, tail = dense_times(job.workload, job.model, hw)
    for d in devices:
        # Dense work of experts on other devices is none.
        own = pre + hw.engine.decision_ns if d.share.device == 0 or job.split == LAYERS else pre * 0
        _price(d, own)
    hop = hop_ns(job)
    joint = JointPlan(
        [d.plan for d in devices], [{} for _ in devices], [],
        *_engines(devices, job), sequential=job.split in (LAYERS, POOL),
    )  # fmt: skip
    if found is not None:
        _second_tier(joint, found[0], found[1], job)
    if joint.sequential:
        in_turn(joint, devices, hop, tail, job)
    else:
        side_by_side(joint, devices, hop, tail, job)
    joint.counters, joint.hit = counted(
        job, [(d.share, d.plan.counters, d.plan.hit) for d in devices]
    )
    joint.slots = [d.plan.slots for d in devices]
    joint.notes = list(dict.fromkeys(n for d in devices for n in d.plan.notes))
    if job.split == POPULARITY and job.profile is None:
        joint.notes.append("which experts are popular was counted on the trace itself (--profile)")
    return joint


def refuse(job: Job) -> None:
    """`InputError` for what several devices have not."""
    if job.hardware.engine.terms is not None and llama_model(job.model) is not None:
        raise InputError(
            f"{job.gpus}: engine {job.hardware.engine.name} has times of one device's kernels; choose "
            "a `program` without terms, such as estimated",
            argument="gpus",
        )
    for name, said in (("prefetch_pieces", "prefetches in pieces"), ("policy_time", "policy time"),
                       ("state", "a saved state"), ("keeps_state", "a saved state")):  # fmt: skip
        if getattr(job, name):
            raise InputError(f"{job.gpus}: {said} is of one GPU; leave one out", argument="gpus")
    if not isinstance(job.policy, PolicySpec):
        raise InputError("several GPUs need a policy that decides about experts")
    if asks(job.policy):
        raise InputError(
            f"{job.gpus}: policy {job.policy.name} gives misses to the CPU; that is of one GPU",
            argument="gpus",
        )
    if job.split == POOL and job.write_back:
        raise InputError(": what leaves goes to the other card in split pool", "write_back")
    if job.split == POOL and job.reset != "never":
        raise InputError(f"{job.reset}: the pool of several cards is not emptied", "reset")


# ---- what each device does ------------------------------------------------------------------------


def _price(d: Device, before: np.ndarray) -> None:
    """Durations of a device's waves and copies; ``before``: int64 [E of the run] what comes before an
    event's experts."""
    plan, job = d.plan, d.share.job
    hw = job.hardware
    back = plan.copy_kind == WRITEBACK
    # What goes to another card's memory leaves the host's link alone.
    both = job.write_back and bool(back.any()) and not job.write_back_alloc
    plan.copy_ns = copy_times(plan.copy_bytes, hw, "h2d", job.pinned, both)
    if back.any():
        plan.copy_ns[back] = write_back_times(
            plan.copy_bytes[back], hw, job.pinned, both, job.write_back_alloc
        )
    first = np.concatenate(([True], np.diff(plan.wave_event) != 0))[: len(plan.wave_event)]
    plan.pre_ns = np.where(first, before[d.share.events[plan.wave_event]], 0)
    plan.compute_ns = expert_times(job.workload, job.model, hw, plan.wave_hi)


def _pooled(job: Job) -> tuple[Device, np.ndarray, np.ndarray]:
    """The one device that computes, and where its copies come from and go to."""
    (share,) = shares_of(job)
    decisions, served, tiers = tiers_of(job, share)
    plan = unpriced(decisions, share.job, served)
    where, also = tiers.where, tiers.also
    kept = where != DROPPED
    if not kept.all():
        _drop(plan, kept)
        also = np.where(also >= 0, np.cumsum(kept)[also] - 1, -1)[kept]
    plan.notes.append(f"{tiers.places:,} places behind the pool, on {job.gpus - 1} more")
    return device_of(share, plan), where[kept], also


def tiers_of(job: Job, share: Share) -> tuple[Decisions, list[Served], Tiers]:
    """All decisions of the pool, and where its copies come from and go to."""
    decisions = Decisions(replace(share.job, write_back=True))
    served = decisions.serve_all()
    kind, moved, victim = (
        np.concatenate([getattr(s, x) for s in served])
        for x in ("copy_kind", "copy_expert", "copy_victim")
    )
    waves = [np.diff(s.wave_copy_hi, prepend=s.copies_before) for s in served]
    widest = int(np.concatenate(waves).max(initial=0))
    total = len(share.experts)
    spare = min(expert_slots(replace(job, model=_bare(job))) * (job.gpus - 1), total)
    return decisions, served, by_tier(kind, moved, victim, spare, total, widest)


def _bare(job: Job) -> Model:
    """The model's experts alone: what lies on a card that does nothing else."""
    m = job.model
    return replace(
        m, dense_bytes=(0,) * m.n_layers, output_bytes=0, kv_bytes_per_token=0, embedding_bytes=0
    )


def _drop(plan: Plan, kept: np.ndarray) -> None:
    """Leave out copies nobody waits for; what would follow them follows what they follow."""
    after = plan.copy_after.copy()
    for c in np.flatnonzero(after >= 0).tolist():
        while after[c] >= 0 and not kept[after[c]]:
            after[c] = after[after[c]]
    number = np.cumsum(kept) - 1
    upto = np.concatenate(([0], np.cumsum(kept)))
    plan.copy_after = np.where(after >= 0, number[after], -1)[kept]
    plan.waits = number[plan.waits]
    plan.wave_copy_hi = upto[plan.wave_copy_hi]
    for name in ("copy_bytes", "copy_kind", "copy_ns"):
        setattr(plan, name, getattr(plan, name)[kept])


def _engines(
    devices: list[Device], job: Job
) -> tuple[list[np.ndarray], int, list[np.ndarray], list[np.ndarray]]:
    """The copy engines: each device has one a direction of its link, or all share one in."""
    engine = []
    for i, d in enumerate(devices):
        back = d.plan.copy_kind == WRITEBACK
        engine.append(np.where(back, 2 * i + 1, 0 if job.shared_link else 2 * i).astype(np.int64))
    also = [np.full(len(x), -1, np.int64) for x in engine]
    return engine, 2 * len(devices), also, [np.zeros(len(x), np.bool_) for x in engine]


def _second_tier(joint: JointPlan, where: np.ndarray, also: np.ndarray, job: Job) -> None:
    """Copies from and to the other card's memory, each way on an engine of its own."""
    plan = joint.plans[0]
    peer = where == PEER
    rate, latency = peer_of(job).bytes_per_s, job.hardware.copy_latency_ns
    ns = np.rint(plan.copy_bytes / rate * 1e9).astype(np.int64) + latency
    plan.copy_ns = np.where(peer, np.maximum(ns, 1), plan.copy_ns)
    inward = plan.copy_kind != WRITEBACK
    joint.engine = [np.where(peer & inward, 2, joint.engine[0])]
    joint.also, joint.on_peer, joint.n_engines = [also], [peer], 3


# ---- counters -------------------------------------------------------------------------------------


def counted(
    job: Job, parts: list[tuple[Share, Counters, np.ndarray]]
) -> tuple[Counters, np.ndarray]:
    """Counters of the whole model and uint8 [A] which accesses hit, from those of each share."""
    w = job.workload
    hits, asked = (np.zeros((2, w.n_layers), np.int64) for _ in range(2))
    total, hit = Counters(layer_hits=hits, layer_accesses=asked), np.zeros(len(w.ids), np.uint8)
    for share, c, mine in parts:
        hit[share.accesses] = mine
        hits[:, share.layers] += c.layer_hits
        asked[:, share.layers] += c.layer_accesses
        for name in ("accesses", "hits", "evictions", "prefetch_issued", "prefetch_used",
                     "prefetch_wasted", "resident_at_end", "bypassed", "bypassed_hits"):  # fmt: skip
            setattr(total, name, getattr(total, name) + getattr(c, name))
        for action, n in c.misses_by.items():
            total.misses_by[action] = total.misses_by.get(action, 0) + n
    return total, hit
