"""Issues the waves of several devices: each device's own as `replay.executor` does, and hops between.

A hop is a small copy from device to device on the compute stream of the one that goes on, after an
event of the other's. What it carries are as many bytes as the activations have; inputs of the expert
kernels lie on every device. docs/several-gpus.md has the order.

- ``layers``: the device of a layer hops from that of the layer before; at a step's end the first
  device hops from the last.
- ``experts``: once the first device's dense work before a layer's experts is queued, the others hop
  from it and serve their experts; those that had any are hopped from before the first goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from replay.backend.base import COMPUTE, Backend, Memory
from replay.decide import Wave, Waves
from replay.executor import Executor
from replay.meter import Measured, Meter
from uvmsim.experts.shares import Share
from uvmsim.mechanisms.gates import TOKEN_BYTES, activation_bytes
from uvmsim.runs.job import Job
from uvmsim.runs.splits import LAYERS, POOL


@dataclass
class Device:
    """One device's part of a run."""

    backend: Backend
    share: Share
    executor: Executor
    activations: Memory
    ended: int
    """Recorded after a wave that another device waits for."""
    waves: Iterator[tuple[int, list[Wave]]]
    """The waves of each event, by the run's number of the event."""


def by_event(decisions: Waves, share: Share) -> Iterator[tuple[int, list[Wave]]]:
    """A device's waves, those of one event together."""
    events = share.events.tolist()
    waves: list[Wave] = []
    for step in decisions.steps():
        for wave in step:
            if waves and wave.event != waves[-1].event:
                yield events[waves[-1].event], waves
                waves = []
            waves.append(wave)
    if waves:
        yield events[waves[-1].event], waves


class Joint:
    """One run on several devices."""

    def __init__(self, job: Job, devices: list[Device]):
        self.job, self.devices = job, devices
        self.step_bytes = [
            max(activation_bytes(job) * n, 1) for n in job.workload.step_tokens.tolist()
        ]
        self.token_bytes = [TOKEN_BYTES * n for n in job.workload.step_tokens.tolist()]
        self.hop_bytes = 0

    def run(self) -> Measured:
        """Issue everything and wait for it."""
        devices, w = self.devices, self.job.workload
        home = devices[0]
        meters = []
        for d in devices:
            d.backend.select()
            meters.append(d.executor.begin())
        for d, meter in zip(devices, meters, strict=True):
            d.backend.select()
            meter.start()
        issue: list[int] = []
        began = time.perf_counter_ns()
        last = np.searchsorted(w.event_step, np.arange(w.n_steps), side="right") - 1
        event = 0
        serve = self._in_turn if self.job.split in (LAYERS, POOL) else self._together
        for step, end in enumerate(last.tolist()):
            serve(step, event, end, meters)
            event = end + 1
            issue.append(time.perf_counter_ns() - began)
            for d, meter in zip(devices[1:], meters[1:], strict=True):
                d.backend.select()
                meter.end_step()
            home.backend.select()
            meters[0].end_step()
            began = time.perf_counter_ns()
        for d in devices:
            d.backend.select()
            d.backend.synchronise()
        found = []
        for d, meter in zip(devices, meters, strict=True):
            d.backend.select()
            found.append(d.executor.end(meter, issue))
        home.backend.select()
        return self._merged(found)

    def release(self) -> None:
        """Give back what is the hops'; all work is done."""
        for d in self.devices:
            d.backend.select()
            d.backend.release(d.activations)
            d.backend.forget([d.ended])
        self.devices[0].backend.select()

    # ---- one step -------------------------------------------------------------------------------

    def _in_turn(self, step: int, event: int, end: int, meters: list[Meter]) -> None:
        """A step whose layers are served one after the other."""
        before, at = self.devices[0], 0
        owner = self._owner
        while event <= end:
            i = int(owner[event])
            d = self.devices[i]
            if d is not before:
                self._hop(before, d, self.step_bytes[step])
            d.backend.select()
            at = i
            while event <= end and owner[event] == i:
                self._waves(d, event, meters[i])
                event += 1
            before = d
        before.executor.dense.end(step)
        if at:
            self._hop(before, self.devices[0], self.token_bytes[step])

    def _together(self, step: int, event: int, end: int, meters: list[Meter]) -> None:
        """A step whose experts are served side by side."""
        home, others = self.devices[0], self.devices[1:]
        for e in range(event, end + 1):
            home.backend.select()
            self._waves(home, e, meters[0])
            busy = []
            for d, meter in zip(others, meters[1:], strict=True):
                assert home.executor.queued_dense is not None
                self._hop(home, d, self.step_bytes[step], home.executor.queued_dense)
                if self._waves(d, e, meter):
                    d.backend.record(d.ended, COMPUTE)
                    busy.append(d)
            for d in busy:
                self._hop(d, home, self.step_bytes[step], d.ended)
        home.backend.select()
        home.executor.dense.end(step)

    def _waves(self, d: Device, event: int, meter: Meter) -> bool:
        """Queue a device's waves of an event; whether it has experts to compute."""
        number, waves = next(d.waves)
        assert number == event, "a device is at another event than the run"
        for wave in waves:
            d.executor.wave(wave, meter)
        return waves[-1].hi > waves[0].lo

    def _hop(self, source: Device, target: Device, nbytes: int, event: int | None = None) -> None:
        """The target goes on after an event of the source (None: all queued so far) and a copy."""
        if event is None:
            source.backend.select()
            event = source.ended
            source.backend.record(event, COMPUTE)
        b = target.backend
        b.select()
        b.wait(COMPUTE, event)
        b.hop(target.activations.ptr, source.activations.ptr, nbytes, COMPUTE, source.backend)
        self.hop_bytes += nbytes

    @property
    def _owner(self) -> np.ndarray:
        if not hasattr(self, "_owners"):
            self._owners = np.zeros(self.job.workload.n_events, np.int64)
            for i, d in enumerate(self.devices):
                self._owners[d.share.events] = i
        return self._owners

    def _merged(self, found: list[Measured]) -> Measured:
        """Steps as the first device saw them; stalls of all where one works at a time, else the
        first's."""
        first = found[0]
        if first.busy_ns is None:
            return Measured(first.step_ns, first.issue_ns)
        busy = {s: sum((m.busy_ns or {})[s] for m in found) for s in first.busy_ns}
        shown = found if self.job.split in (LAYERS, POOL) else found[:1]
        stall, transfer = (
            np.sum([getattr(m, x) for m in shown], axis=0) for x in ("stall_ns", "transfer_ns")
        )
        return Measured(first.step_ns, first.issue_ns, stall, transfer, busy)
