"""A run's decisions, one forward pass at a time: which slot each expert is copied to and read from.

The expert cache's are those of `uvmsim.experts.decisions`, the object the simulator asks too, so its
counters are the simulator's by construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from uvmsim.experts.decisions import Decisions, Served
from uvmsim.experts.misses import Split
from uvmsim.policies.base import CPU
from uvmsim.policies.registry import asks
from uvmsim.runs.job import Job, counters_without_pool
from uvmsim.runs.plan import DEMAND, WRITEBACK, Counters

Move = tuple[int, int]
"""An expert and a slot."""


@dataclass(frozen=True)
class Fetch:
    """A copy to the device, out of a slot of host memory above a disk."""

    expert: int
    slot: int
    """Slot in device memory."""
    stream: int
    """Of `replay.backend.base`: demand or prefetch."""
    ram_slot: int
    reads: bool
    """It asks for a read of the expert into that slot."""


@dataclass
class Wave:
    """Experts of one event that are resident together; all of it is known before it starts."""

    event: int
    lo: int
    hi: int
    """Accesses lo .. hi - 1."""
    slots: np.ndarray
    """int [hi - lo]: slot each access reads."""
    first: bool
    """The event's dense work comes before this wave."""
    leaving: list[Move] = field(default_factory=list)
    """Experts that lose their slot, before the copies below."""
    demand: list[Move] = field(default_factory=list)
    prefetch: list[Move] = field(default_factory=list)
    arriving: list[int] = field(default_factory=list)
    """Slots filled by a prefetch and read for the first time."""
    emptied: bool = False
    """The pool was emptied before this wave."""
    fetches: list[Fetch] = field(default_factory=list)
    """With a disk below host memory: the copies of ``demand`` and ``prefetch``, in the plan's order."""
    away: np.ndarray | None = None
    """bool [hi - lo]: accesses that the CPU computes; None: none."""


class Waves:
    """Waves of a job, and its counters once all steps were taken."""

    slots: int
    """Slots the waves use."""
    beside: int = 0
    """Slots after those, for experts that are served without getting one."""
    uses_cpu = False
    """Whether the CPU may have to compute."""

    def __init__(self, job: Job):
        self.job = job
        self.notes: list[str] = []

    def steps(self) -> Iterator[list[Wave]]:
        """The waves of each forward pass, in order."""
        raise NotImplementedError

    def counters(self) -> Counters:
        raise NotImplementedError

    def on_cpu(self) -> np.ndarray | None:
        """bool [A]: accesses that the CPU computed; None: none."""
        return None

    def _step_bounds(self) -> np.ndarray:
        """int64 [steps + 1]: first event of each step."""
        w = self.job.workload
        return np.searchsorted(w.event_step, np.arange(w.n_steps + 1)).astype(np.int64)


class AllResident(Waves):
    """Every expert has a slot of its own, filled before the run. ``hits``: whether that counts."""

    def __init__(self, job: Job, hits: bool = True):
        super().__init__(job)
        self.slots = job.workload.n_layers * job.workload.n_experts
        self.hits = hits

    def steps(self) -> Iterator[list[Wave]]:
        w = self.job.workload
        bounds, lo = self._step_bounds(), w.event_lo.tolist()
        ids = w.ids.astype(np.int64)
        for s in range(w.n_steps):
            yield [
                Wave(i, lo[i], lo[i + 1], ids[lo[i] : lo[i + 1]], True)
                for i in range(bounds[s], bounds[s + 1])
            ]

    def counters(self) -> Counters:
        hit = np.full(len(self.job.workload.ids), self.hits, np.uint8)
        return counters_without_pool(self.job, hit)


class OneByOne(Waves):
    """Naive offload: each expert is copied in for its call; one slot, so nothing overlaps."""

    def __init__(self, job: Job):
        super().__init__(job)
        self.slots = 1

    def steps(self) -> Iterator[list[Wave]]:
        w = self.job.workload
        bounds, lo, ids = self._step_bounds(), w.event_lo.tolist(), w.ids.tolist()
        slot = np.zeros(1, np.int64)
        last = -1
        for s in range(w.n_steps):
            waves = []
            for i in range(bounds[s], bounds[s + 1]):
                if lo[i] == lo[i + 1]:
                    waves.append(Wave(i, lo[i], lo[i], slot[:0], True))
                for a in range(lo[i], lo[i + 1]):
                    leaving = [(last, 0)] if last >= 0 else []
                    waves.append(Wave(i, a, a + 1, slot, a == lo[i], leaving, [(ids[a], 0)]))
                    last = ids[a]
            yield waves
        if last >= 0:
            # The last expert leaves too; there is no wave after it to say so.
            yield [Wave(w.n_events - 1, len(ids), len(ids), slot[:0], False, [(last, 0)])]

    def counters(self) -> Counters:
        return counters_without_pool(self.job, np.zeros(len(self.job.workload.ids), np.uint8))


class CachePolicy(Waves):
    """The simulator's own decisions (`uvmsim.experts.decisions`), one forward pass at a time."""

    def __init__(self, job: Job, split: Split | None = None):
        """``split``: the CPU takes its share of the misses."""
        super().__init__(job)
        self.decisions = Decisions(job, split)
        self.uses_cpu = split is not None or asks(self.decisions.spec)
        self.slots, self.beside = self.decisions.slots, self.decisions.beside
        self.notes = self.decisions.notes

    def steps(self) -> Iterator[list[Wave]]:
        w = self.job.workload
        ends = self._step_bounds()[1:].tolist()
        waves: list[Wave] = []
        while self.decisions.at < w.n_events:
            upto = ends[int(w.event_step[self.decisions.at])]
            served = self.decisions.serve(upto)
            self._follow(served, waves)
            if self.decisions.at == upto:
                yield waves
                waves = []

    def counters(self) -> Counters:
        return self.decisions.counters()

    def on_cpu(self) -> np.ndarray | None:
        return self.decisions.on_cpu()

    def _follow(self, served: Served, waves: list[Wave]) -> None:
        """The waves of what was served, added to those of the same pass."""
        w, slot = self.job.workload, self.decisions.slot
        moves = list(
            zip(
                served.copy_kind.tolist(), served.copy_expert.tolist(), served.copy_slot.tolist(),
                served.copy_victim.tolist(), strict=True,
            )
        )  # fmt: skip
        arriving = served.wait_slot.tolist()
        copy, wait = served.copies_before, served.waits_before
        before = -1
        for event, hi, copy_hi, wait_hi in zip(
            served.wave_event.tolist(), served.wave_hi.tolist(), served.wave_copy_hi.tolist(),
            served.wave_wait_hi.tolist(), strict=True,
        ):  # fmt: skip
            lo = waves[-1].hi if event == before else int(w.event_lo[event])
            wave = Wave(event, lo, hi, slot[lo:hi], event != before)
            if self.uses_cpu:
                away = self.decisions.action[lo:hi] >= CPU
                wave.away = away if away.any() else None
            wave.emptied = served.emptied and before < 0
            before = event
            for kind, expert, place, victim in moves[
                copy - served.copies_before : copy_hi - served.copies_before
            ]:
                if kind == WRITEBACK:
                    continue  # the copy into its slot names who leaves
                if victim >= 0:
                    wave.leaving.append((victim, place))
                (wave.demand if kind == DEMAND else wave.prefetch).append((expert, place))
            wave.arriving = arriving[wait - served.waits_before : wait_hi - served.waits_before]
            copy, wait = copy_hi, wait_hi
            waves.append(wave)
