"""What several GPUs do together: a plan a device, and what of one waits for what of another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from uvmsim.runs.outcome import Outcome, share
from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK, Counters, Plan
from uvmsim.runs.played import Played, check, late_waits, time_split
from uvmsim.runs.timeline import Timeline

OPENED, ENDED = 0, 1
"""What of another device's wave is waited for: its opening, or its end."""


@dataclass(frozen=True)
class Gate:
    """A wave (or the end of a step) comes ``ns`` after something of a wave of some device."""

    device: int
    wave: int
    what: int
    """OPENED or ENDED."""
    ns: int


@dataclass
class JointPlan:
    """D devices. Waves and copies are numbered within their device."""

    plans: list[Plan]
    """One a device; their ``step_wave_hi`` is not used."""
    gates: list[dict[int, list[Gate]]]
    """By device: waves whose dense work waits for others."""
    step_gates: list[list[Gate]]
    """By step: it ends when the last of these has come."""
    engine: list[np.ndarray]
    """By device, int64 [C]: the copy engine of each copy; one may serve several devices."""
    n_engines: int
    also: list[np.ndarray]
    """By device, int64 [C]: another copy that must be done first, -1 if none."""
    on_peer: list[np.ndarray]
    """By device, bool [C]: the copy comes from, or goes to, another device."""
    counters: Counters = field(default_factory=Counters)
    hit: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    slots: list[int] = field(default_factory=list)
    """Of each device."""
    hop_bytes: int = 0
    """Activations between devices, all together."""
    sequential: bool = True
    """Only one device works at a time."""
    notes: list[str] = field(default_factory=list)


@dataclass
class JointTimeline:
    """Times as in `uvmsim.runs.timeline.Timeline`, a device; their ``step_end`` is empty."""

    step_end: np.ndarray
    """int64 [S]"""
    devices: list[Timeline]

    def equals(self, other: JointTimeline) -> bool:
        """Equal to the nanosecond, everywhere."""
        return np.array_equal(self.step_end, other.step_end) and all(
            a.equals(b) for a, b in zip(self.devices, other.devices, strict=True)
        )


@dataclass(frozen=True)
class JointlyPlayed:
    """A plan of several devices that a clock has played: the trail of its outcome."""

    plan: JointPlan
    timeline: JointTimeline

    def measures(self, run: Outcome) -> dict[str, Any]:
        """The numbers of a run on one device, and those of each."""
        plan, t, c = self.plan, self.timeline, self.plan.counters
        late = sum(late_waits(p, x) for p, x in zip(plan.plans, t.devices, strict=True))
        host = [~peer for peer in plan.on_peer]
        inward = [self._bytes(kind, host) for kind in (DEMAND, PREFETCH)]
        total = int(t.step_end[-1]) if len(t.step_end) else 0
        moved = sum(
            int(p.copy_ns[h & (p.copy_kind != WRITEBACK)].sum())
            for p, h in zip(plan.plans, host, strict=True)
        )
        links = len(
            {int(x) for e, h in zip(plan.engine, host, strict=True) for x in np.unique(e[h])}
        )
        return {
            **run.counts(),
            **({"misses_by": c.misses_by} if c.misses_by else {}),
            "bytes_h2d": sum(inward),
            "bytes_d2h": self._bytes(WRITEBACK, host),
            "bytes_prefetched": inward[1],
            "bytes_peer": plan.hop_bytes
            + sum(
                int(p.copy_bytes[x].sum()) for p, x in zip(plan.plans, plan.on_peer, strict=True)
            ),
            "prefetch": {
                "issued": c.prefetch_issued,
                "useful": c.prefetch_used - late,
                "late": late,
                "wasted": c.prefetch_wasted,
            },
            **run.speeds(),
            "time_split_s": self._split(total),
            "link_utilisation": share(moved, total * max(links, 1)),
            "gpus": [self._device(d) for d in range(len(plan.plans))],
            "notes": plan.notes,
        }

    def counted(self, steps: np.ndarray) -> dict[str, Any]:
        """Nothing counts bytes by forward pass of several devices."""
        keys = ("bytes_h2d", "bytes_d2h", "chunks_in", "chunks_out", "services_per_chunk")
        return dict.fromkeys(keys)

    def _bytes(self, kind: int, which: list[np.ndarray]) -> int:
        found = zip(self.plan.plans, which, strict=True)
        return sum(int(p.copy_bytes[mine & (p.copy_kind == kind)].sum()) for p, mine in found)

    def _device(self, d: int) -> dict[str, Any]:
        """Counts of one device, and how long its kernels ran."""
        p, peer = self.plan.plans[d], self.plan.on_peer[d]
        inward = p.copy_kind != WRITEBACK
        return {
            "slots": self.plan.slots[d],
            "accesses": p.counters.accesses,
            "hits": p.counters.hits,
            "misses": p.counters.misses,
            "bytes_h2d": int(p.copy_bytes[inward & ~peer].sum()),
            "compute_s": float(p.pre_ns.sum() + p.compute_ns.sum()) / 1e9,
        }

    def _split(self, total: int) -> dict[str, float]:
        """Where the time went, in seconds, as of one device; ``peer`` is hops between devices, and the
        first device's waiting for the others where they work at the same time."""
        shown = len(self.plan.plans) if self.plan.sequential else 1
        parts = [
            time_split(p, t)
            for p, t in zip(self.plan.plans[:shown], self.timeline.devices[:shown], strict=True)
        ]
        told = {k: sum(x[k] for x in parts) for k in parts[0]}
        told["peer"] = max(total / 1e9 - sum(told.values()), 0.0)
        return told


def check_joint(run: JointlyPlayed) -> None:
    """Invariants of every finished run, of each device and of all together."""
    plan, t = run.plan, run.timeline
    for p, own in zip(plan.plans, t.devices, strict=True):
        check(Played(p, own))
    c = plan.counters
    if int(plan.hit.sum()) != c.hits or len(plan.hit) != c.accesses:
        raise AssertionError("the devices' hits and misses are not the accesses")
    if (np.diff(t.step_end) < 0).any():
        raise AssertionError("the clock ran backwards")
