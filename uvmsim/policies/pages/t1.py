"""T1 of gpu_ext's programs: frames that have been counted three times are hot.

Counts are kept in a PERCPU_ARRAY, so a frame has one on every CPU that the fault handler has run on,
and each of them has to reach T1 by itself.
"""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.pages.base import BATCH, DEFAULT, PagePolicy, move_tail, whole

SLOTS = 16384
"""Of the PERCPU_ARRAY. gpu_ext's index is a hash of the chunk's kernel address, which collides; ours
is the chunk's number, which does not below 16,384 chunks."""
MOST_CPUS, LARGE = 1024, 1 << 32


class Counts(NamedTuple):
    uses: np.ndarray  # int64 [cpus, slots]
    t1: np.ndarray  # int64 [1]


def counted(uses, d, chunk):
    """Count ``chunk`` on the CPU that serves this batch; its count there. ``uses``: int64 [cpus,
    `SLOTS`]. The handler is a kernel thread that may wake on another CPU: here it takes one after the
    other, a batch each."""
    cpu, slot = d.n[BATCH] % len(uses), chunk % SLOTS
    uses[cpu, slot] += 1
    return uses[cpu, slot]


class CountsFrames(PagePolicy):
    """A program that counts frames."""

    t1: int = 3
    cpus: int = 1  # that the fault handler runs on in turn

    def counts(self) -> Counts:
        """Empty counts for ``cpus`` CPUs, and ``t1``."""
        cpus, t1 = whole(self, "cpus", 1, MOST_CPUS), whole(self, "t1", 1, LARGE)
        return Counts(np.zeros((cpus, SLOTS), np.int64), np.array([t1], np.int64))


class HotFrames(CountsFrames):
    """A frame allocated for the third time asks for the tail, where it already is."""

    def state(self, ctx):
        return self.counts()

    @staticmethod
    def block_activate(s, d, chunk):
        if counted(s.uses, d, chunk) >= s.t1[0]:
            move_tail(d, chunk)
        return DEFAULT
