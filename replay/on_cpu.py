"""The CPU's part of a run: what a wave's misses give that it computes, where the results go, whether
they are right.

Results are compared twice. Before the run every expert's rows with those of the device, within
`replay.cpu_experts.TOLERANCE`; in the run each access's rows with these, bit for bit: the CPU takes its
sums in an order of its own, but always in the same one.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from replay.backend.base import COMPUTE, X_ROWS, Backend
from replay.bank import Bank
from replay.cpu_experts import CpuExperts, agrees
from traces.errors import InputError
from traces.jit import compiled
from uvmsim.runs.job import Job


@compiled(nogil=True)
def _hash_rows(words, rows, columns):  # type: ignore[no-untyped-def]
    """`replay.digest.row_hash` of the first ``rows``, summed; ``words`` uint32 [rows, >= columns]."""
    total = np.uint64(0)
    for r in range(rows):
        for c in range(columns):
            z = np.uint64(words[r, c] ^ np.uint32(np.uint32(c) * np.uint32(0x9E3779B1)))
            z *= np.uint64(0x9E3779B97F4A7C15)
            total += z ^ (z >> np.uint64(29))
    return total


class OnCpu:
    """Buffers and expectations of one run; `release` them."""

    def __init__(self, backend: Backend, job: Job, bank: Bank, x: np.ndarray):
        """``x`` float32 [X_ROWS, width]: the input rows. Raises `InputError`."""
        self.backend, self.job, self.bank = backend, job, bank
        w = job.workload
        per_event = np.add.reduceat(w.counts, w.event_lo[:-1][np.diff(w.event_lo) > 0])
        self.rows = max(X_ROWS, int(per_event.max(initial=1)))
        width = x.shape[1]
        nbytes = self.rows * width * 4
        self.results = backend.host(nbytes, "results of the CPU's experts")
        self.landing = backend.device(nbytes, "results of the CPU's experts")
        assert self.results.array is not None and bank.memory.array is not None
        out = self.results.array.view(np.float32).reshape(self.rows, width)
        self.cpu = CpuExperts(bank.memory.array, x, out, max(y.n_ff for y in bank.layouts))
        self._words = out.view(np.uint32)
        self._stride = 4 * width
        self.found = np.zeros(len(w.ids), np.uint64)
        """By access: hash of what the CPU computed."""
        self.ns = 0
        """Computing, all of the run."""

    def learn(self, experts: np.ndarray) -> None:
        """What the CPU gives for each expert and input row; raises `InputError` where the device gives
        something else. Kept with the bank."""
        bank = self.bank
        images = np.unique(bank.image_of[experts])
        images = images[~bank.cpu_known[images]]
        for i in images.tolist():
            layout = bank.image_layout[i]
            want = bank.device_rows(i)
            got = self.cpu.run(layout, [bank.offsets[i]], [X_ROWS], [0])
            if not agrees(got, want):
                raise InputError(
                    f"expert image {i}: the CPU's results are not the device's (largest difference "
                    f"{float(np.abs(got - want).max()):.3g} of {float(np.abs(want).max()):.3g})"
                )
            for r in range(X_ROWS):
                bank.cpu_rows[i, r] = _hash_rows(self._words[r : r + 1], 1, layout.n_embd)
            bank.cpu_known[i] = True

    def compute(self, accesses: np.ndarray, layer: int, event: int) -> None:
        """Compute experts now and queue their results' way to the device. ``accesses``: their
        numbers."""
        w, layout = self.job.workload, self.bank.layouts[layer]
        begun = time.perf_counter_ns()
        counts = w.counts[accesses]
        at = [self.bank.offsets[i] for i in self.bank.image_of[w.ids[accesses]].tolist()]
        out = self.cpu.run(layout, at, counts, np.full(len(accesses), event % X_ROWS))
        row = 0
        for a, n in zip(accesses.tolist(), counts.tolist(), strict=True):
            self.found[a] = _hash_rows(self._words[row : row + n], n, layout.n_embd)
            row += n
        self.ns += time.perf_counter_ns() - begun
        nbytes = len(out) * self._stride
        self.backend.copy_in(self.landing.ptr, self.results.ptr, nbytes, COMPUTE)

    def problems(self, mine: np.ndarray | None) -> list[str]:
        """What is wrong with the run's results; ``mine`` bool [A]: accesses that the CPU computed."""
        if mine is None:
            return []
        w = self.job.workload
        a = np.flatnonzero(mine)
        want = self.bank.sums_of(self.bank.cpu_rows, w.ids[a], w.counts[a], w.access_event[a])
        wrong = a[self.found[a] != want]
        if not len(wrong):
            return []
        return [
            f"{len(wrong)} of {len(a)} results of the CPU differ from its own before the run, first of "
            f"expert {int(w.ids[wrong[0]])}"
        ]

    def release(self) -> None:
        """Give the buffers back; all work is done."""
        self.backend.release(self.results)
        self.backend.release(self.landing)

    def about(self) -> dict[str, Any]:
        """For the run's options."""
        from numba import get_num_threads

        return {"cpu_threads": get_num_threads()}
