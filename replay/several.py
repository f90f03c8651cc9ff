"""A run on several devices: made, issued, checked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from replay.backend.base import BACK, DEMAND, PREFETCH, Backend
from replay.bank import Bank
from replay.behind import Tiered
from replay.checks import check as check_outputs
from replay.decide import CachePolicy
from replay.dense_reads import DenseReads
from replay.executor import Executor, Pace
from replay.how import How
from replay.joint import Device, Joint, by_event
from replay.layout import ExpertLayout
from replay.places import Slots
from replay.results import Moved, Replayed
from uvmsim.experts.shares import Share, shares_of
from uvmsim.mechanisms.gates import activation_bytes, peer_of
from uvmsim.mechanisms.multi_gpu import counted, refuse, tiers_of
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome
from uvmsim.runs.splits import POOL


class Prepared(Protocol):
    """What a session has ready for a run."""

    around: Callable[[], AbstractContextManager[Any]]

    def devices(self, n: int) -> list[Backend]: ...

    def bank(self, job: Job, mode: str, how: How) -> Bank: ...

    def prepare(
        self, backend: Backend, job: Job, layouts: list[ExpertLayout], device: int = 0
    ) -> None: ...


def part_of(bank: Bank, backend: Backend, share: Share) -> Bank:
    """The bank as a device knows it: its experts by its own numbers, in the same host memory."""
    part = copy.copy(bank)
    mine = np.maximum(share.experts, 0)
    part.backend = backend
    part.layouts = [bank.layouts[layer] for layer in share.layers.tolist()]
    part.n_experts = share.job.workload.n_experts
    part.image_of = bank.image_of[mine]
    part.ptrs = [bank.ptrs[e] for e in mine.tolist()]
    part.nbytes = [bank.nbytes[e] for e in mine.tolist()]
    return part


def run_joint(session: Prepared, job: Job, how: How, result: Outcome) -> Outcome:
    """Fill ``result`` with the run of a job on several devices. Raises `InputError`, `DoesNotFit`."""
    refuse(job)
    result.about |= {
        "gpus": job.gpus, "split": job.split, "peer": str(peer_of(job)),
        "shared_link": job.shared_link,
    }  # fmt: skip
    devices = session.devices(job.gpus)
    shares = shares_of(job)
    for s in shares:
        # Hooks are compiled at their first call: not in the run.
        next(iter(CachePolicy(s.job).steps()), None)
    pooled = job.split == POOL
    decisions = [CachePolicy(replace(s.job, write_back=pooled or s.job.write_back)) for s in shares]
    bank = session.bank(job, "expert-cache", how)
    used = np.unique(job.workload.ids)
    devices[0].select()
    session.prepare(devices[0], job, bank.layouts, 0)
    bank.learn(used)
    made: list[Device] = []
    joint = Joint(job, made)
    wide = max([*joint.step_bytes, *joint.token_bytes], default=1)
    try:
        for i, (b, share, decided) in enumerate(zip(devices, shares, decisions, strict=False)):
            b.select()
            part = part_of(bank, b, share)
            session.prepare(b, job, bank.layouts, i)
            dense = DenseReads(b, share.job, remote=False)
            n = decided.slots + decided.beside
            if pooled:
                _, _, tiers = tiers_of(job, share)
                places: Slots = Tiered(b, part, n, share.job, devices[1:], tiers)
            else:
                places = Slots(b, part, n, share.job, how.split)
            executor = Executor(
                b, share.job, part, places, decided, dense, Pace(how.ahead, how.detail)
            )
            ended, told = b.events(2)
            executor.queued_dense = told
            made.append(
                Device(
                    b,
                    share,
                    executor,
                    b.device(wide, "activations"),
                    ended,
                    by_event(decided, share),
                )
            )
        devices[0].select()
        with session.around():
            measured = joint.run()
        for i, d in enumerate(made):
            d.backend.select()
            x = d.executor
            assert isinstance(x.places, Slots)
            told_of = check_outputs(
                d.backend, d.share.job, x.bank, x.places, np.unique(d.share.job.workload.ids), x
            )  # fmt: skip
            result.problems += [f"device {i}: {p}" for p in told_of]
    finally:
        for d in made:
            d.backend.select()
            d.executor.places.release()
            d.executor.dense.release()
            d.backend.forget([d.executor.queued_dense or 0])
        joint.release()
        devices[0].select()
    slots = [x.slots for x in decisions]
    result.counters, _ = counted(
        job, [(s, x.counters(), x.decisions.hit) for s, x in zip(shares, decisions, strict=True)]
    )
    result.slots = sum(slots)
    result.notes = list(dict.fromkeys(n for x in decisions for n in x.notes))
    if bank.shared:
        result.notes.append(
            f"{len(bank.nbytes)} experts share {len(bank.offsets)} images of bytes in host memory"
        )
    moved = [sum(d.executor.bytes[s] for d in made) for s in (DEMAND, PREFETCH, BACK)]
    for d in made:
        if isinstance(d.executor.places, Tiered):
            p = d.executor.places
            moved = [p.host_bytes - p.ahead_bytes, p.ahead_bytes, 0]
            joint.hop_bytes += p.peer_bytes
    result.step_ns = measured.step_ns
    result.trail = Replayed(measured, Moved(*moved), _options(bank, how, joint, made))
    return result


def _options(bank: Bank, how: How, joint: Joint, devices: list[Device]) -> dict[str, Any]:
    layout = bank.layouts[0]
    return {
        "dtype": layout.dtype, "n_embd": layout.n_embd, "n_ff": layout.n_ff, "split": how.split,
        "ahead": how.ahead, "host_memory": bank.kind, "bank_bytes": bank.memory.nbytes,
        "shared_images": bank.shared, "hop_bytes": joint.hop_bytes,
        "activation_bytes": activation_bytes(joint.job),
        "devices": [
            {"slots": d.executor.decisions.slots, "bytes_h2d": d.executor.bytes[DEMAND]
             + d.executor.bytes[PREFETCH], "machine": d.backend.machine()}
            for d in devices
        ],
    }  # fmt: skip
