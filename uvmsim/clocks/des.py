"""The readable clock: a plan played out by SimPy processes.

One process is the GPU's stream, one each the H2D and the D2H copy engine; a CPU worker runs beside
the GPU, and a disk where host memory does not hold everything. What is copied and who waits for what
stands in the plan; what this file adds is *when*.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import simpy
from simpy.events import Event

from uvmsim.clocks.copies import Copy, CopyEngine
from uvmsim.clocks.disk import FedEngine, Feeder
from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK, Plan
from uvmsim.runs.timeline import Timeline


def run(plan: Plan) -> Timeline:
    """Play ``plan`` from time 0 until the GPU is done and all copies have arrived."""
    return Machine(plan).play()


class Machine:
    """One GPU, its two copy engines and the host's CPU, with a plan to follow."""

    def __init__(self, plan: Plan, env: simpy.Environment | None = None):
        self.plan = plan
        self.env = env or simpy.Environment()
        # Plain lists: reading NumPy scalars one by one costs more than the event they time.
        self.kind, self.ns = plan.copy_kind.tolist(), plan.copy_ns.tolist()
        self.after = plan.copy_after.tolist()
        copies, waves = len(plan.copy_ns), len(plan.pre_ns)
        self.copy_start, self.copy_done = [0] * copies, [0] * copies
        self.wave_open, self.wave_ready = [0] * waves, [0] * waves
        self.step_end = [0] * len(plan.step_wave_hi)
        self.feeder = Feeder(self.env, plan.reads) if plan.reads is not None else None
        if self.feeder:
            self.h2d: CopyEngine = FedEngine(self.env, self.copy_start, self.copy_done)
        else:
            self.h2d = CopyEngine(self.env, self.copy_start, self.copy_done, plan.piece_ns)
        self.d2h = CopyEngine(self.env, self.copy_start, self.copy_done)
        self.copies: dict[int, Copy] = {}

    def play(self) -> Timeline:
        self.env.process(self.gpu())
        self.env.run()
        arrays = [self.step_end, self.wave_open, self.wave_ready, self.copy_start, self.copy_done]
        if self.feeder:
            arrays += [self.feeder.start, self.feeder.done]
        return Timeline(*(np.array(a, np.int64) for a in arrays))

    def gpu(self) -> Generator[Event, None, None]:
        """The GPU's stream: for each wave dense work, wait, expert work."""
        p = self.plan
        pre, cpu, compute = p.pre_ns.tolist(), p.cpu_ns.tolist(), p.compute_ns.tolist()
        copy_hi, wait_hi = p.wave_copy_hi.tolist(), p.wave_wait_hi.tolist()
        waits = p.waits.tolist()
        step_of_last_wave = dict(
            zip((p.step_wave_hi - 1).tolist(), range(len(p.step_wave_hi)), strict=True)
        )
        queued = waited = 0
        for wave in range(len(pre)):
            self.wave_open[wave], self.wave_ready[wave] = yield from self.wave(
                pre[wave], cpu[wave], compute[wave], range(queued, copy_hi[wave]),
                waits[waited : wait_hi[wave]],
            )  # fmt: skip
            queued, waited = copy_hi[wave], wait_hi[wave]
            step = step_of_last_wave.get(wave)
            if step is not None:
                self.step_end[step] = int(self.env.now)

    def wave(
        self, pre: int, cpu: int, compute: int, copies: range, waits: list[int]
    ) -> Generator[Event, None, tuple[int, int]]:
        """One wave: ``copies`` are queued when its dense work is done, ``waits`` are prefetches that it
        reads. Returns when it opened, and when all was there."""
        env = self.env
        yield env.timeout(pre)
        opened = int(env.now)
        awaited = self.queue_copies(copies)
        awaited += [self.copies[c] for c in waits]
        if self.plan.piece_ns:
            for copy in awaited:
                self.want(copy)
        if cpu:
            yield env.timeout(cpu)
        for copy in awaited:
            if not copy.done.processed:
                yield copy.done
            del self.copies[copy.number]
        ready = int(env.now)
        yield env.timeout(compute)
        return opened, ready

    def queue_copies(self, numbers: range) -> list[Copy]:
        """Hand a wave's copies to the engines; returns those the wave must wait for."""
        demand = []
        for number in numbers:
            kind, ns = self.kind[number], self.ns[number]
            after = self.pending(self.after[number])
            if self.feeder:
                copy: Copy = self.feeder.copy(number, ns, after, urgent=kind != PREFETCH)
            else:
                copy = Copy(self.env, number, ns, after)
            self.copies[number] = copy
            if kind == DEMAND:
                demand.append(copy)
            (self.d2h if kind == WRITEBACK else self.h2d).queue(copy, urgent=kind != PREFETCH)
        return demand

    def want(self, copy: Copy) -> None:
        """What must be done before ``copy`` may start, and the copy itself: no longer a guess."""
        if copy.after is not None and not copy.ready:
            self.want(copy.after)
        self.h2d.want(copy)

    def pending(self, number: int) -> Copy | None:
        """The copy of that number, None if it is done and forgotten."""
        return self.copies.get(number)
