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

    def __init__(self, plan: Plan):
        self.plan = plan
        self.env = simpy.Environment()
        copies, waves = len(plan.copy_ns), len(plan.pre_ns)
        # Plain lists: reading NumPy scalars one by one costs more than the event they time.
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
        env, p = self.env, self.plan
        pre, cpu, compute = p.pre_ns.tolist(), p.cpu_ns.tolist(), p.compute_ns.tolist()
        copy_hi, wait_hi = p.wave_copy_hi.tolist(), p.wave_wait_hi.tolist()
        waits = p.waits.tolist()
        step_of_last_wave = dict(
            zip((p.step_wave_hi - 1).tolist(), range(len(p.step_wave_hi)), strict=True)
        )
        queued = waited = 0
        for wave in range(len(pre)):
            yield env.timeout(pre[wave])
            self.wave_open[wave] = int(env.now)
            awaited = self.queue_copies(queued, copy_hi[wave])
            queued = copy_hi[wave]
            awaited += [self.copies[c] for c in waits[waited : wait_hi[wave]]]
            waited = wait_hi[wave]
            if p.piece_ns:
                for copy in awaited:
                    self.want(copy)
            if cpu[wave]:
                yield env.timeout(cpu[wave])
            for copy in awaited:
                if not copy.done.processed:
                    yield copy.done
                del self.copies[copy.number]
            self.wave_ready[wave] = int(env.now)
            yield env.timeout(compute[wave])
            step = step_of_last_wave.get(wave)
            if step is not None:
                self.step_end[step] = int(env.now)

    def queue_copies(self, lo: int, hi: int) -> list[Copy]:
        """Hand a wave's copies to the engines; returns those the wave must wait for."""
        p, demand = self.plan, []
        for number in range(lo, hi):
            kind = p.copy_kind[number]
            after = self.pending(int(p.copy_after[number]))
            ns = int(p.copy_ns[number])
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
