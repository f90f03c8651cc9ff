"""Issues a run's waves where experts come from a disk by way of host memory.

As `replay.executor`, but that the host waits for each wave's opening before it asks for what the router
has chosen, since a read is the host's own work, and feeds copies as their bytes arrive
(`replay.fetcher`). Nothing is written back and the CPU computes nothing.
"""

from __future__ import annotations

from typing import Any

from replay.backend.base import COMPUTE, DEMAND, PREFETCH, Backend
from replay.bank import Bank
from replay.decide import Wave, Waves
from replay.dense_reads import DenseReads
from replay.executor import Executor, Pace
from replay.fetcher import Fetcher
from replay.meter import Meter
from replay.on_cpu import OnCpu
from replay.places import Places
from replay.ram import FedSlots, TieredPolicy
from uvmsim.runs.job import Job


class TieredExecutor(Executor):
    """One run above a disk."""

    def __init__(
        self, backend: Backend, job: Job, bank: Bank, places: Places, decisions: Waves,
        dense: DenseReads, pace: Pace, on_cpu: OnCpu | None = None,
    ):  # fmt: skip
        super().__init__(backend, job, bank, places, decisions, dense, pace, on_cpu)
        assert job.tier is not None and on_cpu is None
        assert isinstance(places, FedSlots) and isinstance(decisions, TieredPolicy)
        self.ram = decisions.ram
        self.fetcher = Fetcher(backend, places, places.above, self.filled, job.tier.depth)

    def finish(self) -> list[int]:
        self.fetcher.finish()
        return self.fetcher.events

    def waited_ns(self) -> int:
        return self.fetcher.waited_ns()

    def wave(self, wave: Wave, meter: Meter) -> None:
        b, detail, fetcher = self.backend, self.pace.detail, self.fetcher
        if wave.first:
            self.dense.layer(self.layers[wave.event], self.steps[wave.event])
        demand = any(f.stream == DEMAND for f in wave.fetches)
        ahead = any(f.stream == PREFETCH for f in wave.fetches)
        opened = first = last = -1
        if wave.fetches or fetcher.busy or (detail and wave.arriving):
            opened = meter.mark(COMPUTE) if detail else self.opened
            if not detail:
                b.record(opened, COMPUTE)
        if fetcher.busy or any(f.reads for f in wave.fetches):
            fetcher.until(opened)
        for stream, used in ((DEMAND, demand), (PREFETCH, ahead)):
            if used:
                b.wait(stream, opened)
        for f in wave.fetches:
            self.bytes[f.stream] += self.bank.nbytes[f.expert]
        if demand and detail:
            first = meter.mark(DEMAND)
        fetcher.ask(wave.fetches)
        fetcher.demanded()
        if demand:
            last = meter.mark(DEMAND) if detail else self.arrived
            if detail:
                meter.span(DEMAND, first, last)
            else:
                b.record(last, DEMAND)
            b.wait(COMPUTE, last)
        for slot in wave.arriving:
            fetcher.queued(slot)
            b.wait(COMPUTE, self.filled[slot])
        fetcher.pump()
        if detail and (demand or wave.arriving):
            meter.stall(opened, meter.mark(COMPUTE), first, last)
        if wave.hi > wave.lo:
            self._compute(wave, self.layers[wave.event])

    def told(self) -> dict[str, Any]:
        """What was found in host memory and read, in the simulator's words; reads and bytes are those
        that arrived."""
        ram, tier = self.ram, self.job.tier
        assert tier is not None
        return {
            **tier.to_json(), "policy": ram.spec.name, "slots": ram.slots, "lookups": ram.lookups,
            "hits": ram.hits, "hit_rate": ram.hits / ram.lookups if ram.lookups else None,
            "disk_reads": self.fetcher.done, "disk_bytes": self.fetcher.bytes,
        }  # fmt: skip
