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
    ASYNC,
    BATCH,
    COPY,
    END,
    KERNEL,
    REPLAY,
    SERVICE,
    WAIT,
    WORK,
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
        columns = (program.kind, program.a, program.b, program.c)
        self.rows = list(zip(*(x[:rows].tolist() for x in columns), strict=True))
        self.ends = [0] * n_kernels
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
        for at, (kind, a, b, c) in enumerate(self.rows):
            if kind == COPY:
                yield self.queue(at, 0, c)[0].done
            elif kind == KERNEL:
                started = int(env.now)
            elif kind in (BATCH, WORK):
                yield env.timeout(a)
            elif kind == SERVICE:
                yield env.timeout(a)
                batch += self.queue(at, b, c)
            elif kind == REPLAY:
                for copy in batch:
                    if not copy.done.processed:
                        yield copy.done
                batch = []
                yield env.timeout(a)
            elif kind == ASYNC:
                self.moving[at] = self.queue(at, b, c)
            elif kind == WAIT:
                for copy in self.moving.pop(a):
                    if not copy.done.processed:
                        yield copy.done
            elif kind == END:
                yield env.timeout(max(started + a - int(env.now), 0))
                self.ends[c] = int(env.now)

    def queue(self, at: int, out_ns: int, in_ns: int) -> list[Copy]:
        """A victim's way out and the pages' way in, each on its engine."""
        copies = []
        for direction, ns in ((0, out_ns), (1, in_ns)):
            if ns > 0:
                copies.append(Copy(self.env, 2 * at + direction, ns, None))
                (self.h2d if direction else self.d2h).queue(copies[-1], urgent=True)
        return copies
