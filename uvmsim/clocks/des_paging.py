"""The readable clock of the paging driver: a program played out by SimPy processes.

A *program* (`uvmsim.paging.tables.Program`) is what the driver decided, row by row: kernels, fault
batches, block services with their copies. The GPU's stream, the fault handler and the two copy
engines play it. A kernel computes while its faults are served, but for the warps that wait: their
work comes after their pages. It ends when both are done.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import simpy
from simpy.events import Event

from uvmsim.clocks.copies import Copy, CopyEngine
from uvmsim.paging.tables import (
    ROW_ASYNC,
    ROW_BATCH,
    ROW_COPY,
    ROW_END,
    ROW_KERNEL,
    ROW_REPLAY,
    ROW_SERVICE,
    ROW_WAIT,
    ROW_WORK,
    Program,
)


def run(program: Program, n_kernels: int, duplex: bool) -> np.ndarray:
    """int64 [n_kernels]: when each kernel ends, ns. Equal to the compiled driver's own clock."""
    return Machine(program, n_kernels, duplex).play()


class Machine:
    """GPU, fault handler, copy engines."""

    def __init__(self, program: Program, n_kernels: int, duplex: bool):
        self.env = simpy.Environment()
        rows = int(program.n[0])
        columns = (program.kind, program.own_ns, program.out_ns, program.in_ns, program.ref)
        self.rows = list(zip(*(x[:rows].tolist() for x in columns), strict=True))
        self.ends = [0] * n_kernels
        self.row_done = [0] * rows
        """When each row is done, ns: `Program.clock_ns`."""
        start, done = [0] * (2 * rows + 1), [0] * (2 * rows + 1)
        self.h2d = CopyEngine(self.env, start, done)
        self.d2h = CopyEngine(self.env, start, done) if duplex else self.h2d
        self.moving: dict[int, list[Copy]] = {}

    def play(self) -> np.ndarray:
        self.env.process(self.gpu())
        self.env.run()
        return np.array(self.ends, np.int64)

    def gpu(self) -> Generator[Event, None, None]:
        env = self.env
        started = 0
        batch: list[Copy] = []
        for at, (kind, own_ns, out_ns, in_ns, ref) in enumerate(self.rows):
            if kind == ROW_COPY:
                yield self.queue(at, 0, own_ns)[0].done
            elif kind == ROW_KERNEL:
                started = int(env.now)
            elif kind in (ROW_BATCH, ROW_WORK):
                yield env.timeout(own_ns)
            elif kind == ROW_SERVICE:
                yield env.timeout(own_ns)
                batch += self.queue(at, out_ns, in_ns)
            elif kind == ROW_REPLAY:
                for copy in batch:
                    if not copy.done.processed:
                        yield copy.done
                batch = []
                yield env.timeout(own_ns)
            elif kind == ROW_ASYNC:
                self.moving[at] = self.queue(at, out_ns, in_ns)
            elif kind == ROW_WAIT:
                for copy in self.moving.pop(ref):
                    if not copy.done.processed:
                        yield copy.done
            elif kind == ROW_END:
                yield env.timeout(max(started + own_ns - int(env.now), 0))
                self.ends[ref] = int(env.now)
            self.row_done[at] = int(env.now)

    def queue(self, at: int, out_ns: int, in_ns: int) -> list[Copy]:
        """A victim's way out and, after it, the pages' way into its frame, each on its engine."""
        copies: list[Copy] = []
        for direction, ns in ((0, out_ns), (1, in_ns)):
            if ns > 0:
                copies.append(Copy(self.env, 2 * at + direction, ns, copies[0] if copies else None))
                (self.h2d if direction else self.d2h).queue(copies[-1], urgent=True)
        return copies
