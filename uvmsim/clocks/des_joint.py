"""The readable clock of several GPUs: one process a device, one a copy engine.

A device goes as one alone does (`uvmsim.clocks.des`), but for its gates: dense work of some waves
waits for waves of other devices. An engine that serves several devices has a queue of each; of the
heads that may move it takes the one that was asked for first, of equals that of the first device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

import numpy as np
import simpy
from simpy.events import Event

from uvmsim.clocks.copies import Copy, CopyEngine
from uvmsim.runs.joint import ENDED, OPENED, Gate, JointPlan, JointTimeline
from uvmsim.runs.plan import DEMAND, PREFETCH
from uvmsim.runs.timeline import Timeline


def run(plan: JointPlan) -> JointTimeline:
    """Play ``plan`` from time 0 until all devices are done and all copies have arrived."""
    return Machine(plan).play()


class JointCopy(Copy):
    """A copy of some device that may have to follow two others."""

    __slots__ = ("also", "device", "queued")

    def __init__(
        self, env: simpy.Environment, number: int, duration: int, after: Copy | None,
        also: Copy | None, device: int,
    ):  # fmt: skip
        super().__init__(env, number, duration, after)
        self.also, self.device, self.queued = also, device, int(env.now)

    @property
    def ready(self) -> bool:
        return super().ready and (self.also is None or self.also.done.triggered)


class JointEngine(CopyEngine):
    """A copy engine for copies of several devices."""

    def __init__(self, env: simpy.Environment, start: list[int], done: list[int], devices: int):
        self.lines: list[list[deque[Copy]]] = [[deque() for _ in range(devices)] for _ in range(2)]
        super().__init__(env, start, done)

    def queue(self, copy: Copy, urgent: bool) -> None:
        assert isinstance(copy, JointCopy)
        self.lines[0 if urgent else 1][copy.device].append(copy)
        for other in (copy.after, copy.also):
            if other is not None and not other.done.triggered:
                other.done.callbacks.append(lambda _: self._call())
        self._call()

    def _next(self) -> deque[Copy] | None:
        for lines in self.lines:
            heads = [(q[0].queued, d, q) for d, q in enumerate(lines) if q and q[0].ready]  # type: ignore[attr-defined]
            if heads:
                return min(heads, key=lambda head: head[:2])[2]
        return None


class Machine:
    """The GPUs and all copy engines, with a plan to follow."""

    def __init__(self, plan: JointPlan):
        self.plan, self.env = plan, simpy.Environment()
        devices = len(plan.plans)
        copies = [len(p.copy_ns) for p in plan.plans]
        self.base = np.concatenate(([0], np.cumsum(copies))).tolist()
        self.start, self.done = [0] * self.base[-1], [0] * self.base[-1]
        self.engines = [
            JointEngine(self.env, self.start, self.done, devices) for _ in range(plan.n_engines)
        ]
        waves = [len(p.pre_ns) for p in plan.plans]
        self.open = [[0] * n for n in waves]
        self.ready = [[0] * n for n in waves]
        self.ended = [[0] * n for n in waves]
        asked = [g for by_wave in plan.gates for gates in by_wave.values() for g in gates]
        self.marks = {(g.device, g.wave, g.what): Event(self.env) for g in asked}
        """What somebody waits for, by device, wave, and what of it."""

    def play(self) -> JointTimeline:
        for device in range(len(self.plan.plans)):
            self.env.process(self.gpu(device))
        self.env.run()
        none = np.zeros(0, np.int64)
        devices = [
            Timeline(none, *(np.array(a, np.int64) for a in (self.open[d], self.ready[d],
                     self.start[lo:hi], self.done[lo:hi])))
            for d, (lo, hi) in enumerate(zip(self.base[:-1], self.base[1:], strict=True))
        ]  # fmt: skip
        ends = [max(self.time_of(g) + g.ns for g in gates) for gates in self.plan.step_gates]
        return JointTimeline(np.array(ends, np.int64), devices)

    def time_of(self, gate: Gate) -> int:
        """When what a gate waits for happened, once it has."""
        return (self.open if gate.what == OPENED else self.ended)[gate.device][gate.wave]

    def tell(self, device: int, wave: int, what: int) -> None:
        (self.open if what == OPENED else self.ended)[device][wave] = int(self.env.now)
        if mark := self.marks.get((device, wave, what)):
            mark.succeed()

    def gpu(self, device: int) -> Generator[Event, None, None]:
        """A GPU's stream: for each wave its gates, dense work, wait, expert work."""
        env, p = self.env, self.plan.plans[device]
        gates = self.plan.gates[device]
        copies: dict[int, JointCopy] = {}
        queued = waited = 0
        for wave in range(len(p.pre_ns)):
            for gate in gates.get(wave, ()):
                mark = self.marks[gate.device, gate.wave, gate.what]
                if not mark.processed:
                    yield mark
            begin = max((self.time_of(g) + g.ns for g in gates.get(wave, ())), default=0)
            yield env.timeout(max(begin - int(env.now), 0))
            yield env.timeout(int(p.pre_ns[wave]))
            self.tell(device, wave, OPENED)
            awaited = self.queue_copies(device, queued, int(p.wave_copy_hi[wave]), copies)
            queued = int(p.wave_copy_hi[wave])
            awaited += [copies[c] for c in p.waits[waited : p.wave_wait_hi[wave]].tolist()]
            waited = int(p.wave_wait_hi[wave])
            if p.cpu_ns[wave]:
                yield env.timeout(int(p.cpu_ns[wave]))
            for copy in awaited:
                if not copy.done.processed:
                    yield copy.done
            self.ready[device][wave] = int(env.now)
            yield env.timeout(int(p.compute_ns[wave]))
            self.tell(device, wave, ENDED)

    def queue_copies(
        self, device: int, lo: int, hi: int, copies: dict[int, JointCopy]
    ) -> list[JointCopy]:
        """Hand a wave's copies to their engines; returns those the wave must wait for."""
        p, demand = self.plan.plans[device], []
        for number in range(lo, hi):
            kind = p.copy_kind[number]
            copy = JointCopy(
                self.env, self.base[device] + number, int(p.copy_ns[number]),
                copies.get(int(p.copy_after[number])),
                copies.get(int(self.plan.also[device][number])), device,
            )  # fmt: skip
            copies[number] = copy
            if kind == DEMAND:
                demand.append(copy)
            engine = self.engines[int(self.plan.engine[device][number])]
            engine.queue(copy, urgent=kind != PREFETCH)
        return demand
