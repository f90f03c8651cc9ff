"""The probe of a machine without a GPU: memory copies stand in for the link.

Its numbers are those of memcpy. They let the whole command run, and be tested, anywhere; they say
nothing about a GPU.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from replay.calibrate.probe import HANDOVER, HOP, HOP_BYTES, MiB, NotHere, Probe
from replay.calibrate.stats import Row, repeat, row


def _timed(work: Callable[[], Any]) -> float:
    begin = time.perf_counter_ns()
    work()
    return float(time.perf_counter_ns() - begin)


class HostProbe(Probe):
    """Copies between two host buffers, reads of one."""

    name = "host"

    def machine(self) -> dict[str, Any]:
        return {
            "gpu": "none (host memory)",
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count() or 1,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }

    def vram_bytes(self) -> int:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def copies(self, direction: str, pinned: bool = True) -> list[Row]:
        biggest = max(self.effort.copy_sizes)
        source, target = np.ones(biggest, np.uint8), np.zeros(biggest, np.uint8)
        rows = []
        for size in self.effort.copy_sizes:
            a, b = source[:size], target[:size]
            batch = max(1, min(64, MiB // size))

            def run(a: np.ndarray = a, b: np.ndarray = b, batch: int = batch) -> float:
                def many() -> None:
                    for _ in range(batch):
                        np.copyto(b, a)

                return _timed(many) / batch

            run()
            rows.append(row(repeat(run, self.effort.repetitions), size))
        return rows

    def single_copies(self, direction: str) -> list[Row]:
        return self.copies(direction)

    def both_ways(self) -> list[Row]:
        rows = []
        for direction in ("h2d", "d2h"):
            for other in ("idle", "busy"):
                largest = self.copies(direction)[-1]
                rows.append({"direction": direction, "other": other, **largest})
        return rows

    def launches(self) -> list[Row]:
        buffer, target = np.ones(8, np.uint8), np.zeros(8, np.uint8)

        def call() -> float:
            return _timed(lambda: np.copyto(target, buffer))

        times = [call() for _ in range(50)]
        names = ("issue a copy", "issue a kernel", "empty kernel", "copy and wait", HANDOVER)
        return [row(times, what=what) for what in names]

    def pinned_alloc(self) -> list[Row]:
        size = self.effort.big // 8
        taken = repeat(partial(_timed, partial(np.ones, size, np.uint8)), self.effort.repetitions)
        return [row(taken, size)]

    def reads(self) -> list[Row]:
        return [{"kernel": "stream", **r} for r in self._sums()]

    def zero_copy(self) -> list[Row]:
        return self._sums()[-1:]

    def devices(self) -> int:
        return 2

    def peers(self) -> list[Row]:
        rows = [{"what": "copies", "direction": d, **r} for d in ("0-1", "1-0")
                for r in self.copies("h2d")]  # fmt: skip
        source, target = np.ones(HOP_BYTES, np.uint8), np.zeros(HOP_BYTES, np.uint8)
        taken = repeat(partial(_timed, partial(np.copyto, target, source)), self.effort.repetitions)
        return [*rows, {"what": HOP, "direction": "0-1", **row(taken, HOP_BYTES)}]

    def faults(self) -> list[Row]:
        raise NotHere("managed memory needs a GPU")

    def migrations(self) -> list[Row]:
        raise NotHere("managed memory needs a GPU")

    def _sums(self) -> list[Row]:
        data = np.ones(self.effort.big // 8, np.int64)
        rows = []
        for size in (self.effort.big // 16, self.effort.big // 4, self.effort.big):
            part = data[: size // 8]
            times = repeat(partial(_timed, part.sum), self.effort.repetitions)
            rows.append(row(times, part.nbytes))
        return rows
