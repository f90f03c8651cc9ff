"""Managed memory under the probe's eyes: what a first touch costs, and what a prefetch does."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from replay.calibrate.probe import KiB, MiB, NotHere
from replay.calibrate.stats import Row, repeat, row

DEVICE, HOST = 1, 2
"""CUmemLocationType."""
EXPERT = 13_219_200
"""Bytes of one gpt-oss expert (MXFP4): calls of that size are what an expert policy makes."""


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class ManagedMemory:
    """One managed allocation of ``nbytes``, written by the CPU; ``probe`` is a `CudaProbe`.

    Raises `NotHere` where the driver has no `cuMemPrefetchAsync_v2` (before CUDA 12.2).
    """

    def __init__(self, probe: Any, nbytes: int):
        self.probe, self.nbytes = probe, nbytes
        try:
            self._prefetch = ctypes.CDLL("libcuda.so.1").cuMemPrefetchAsync_v2
        except (OSError, AttributeError):
            raise NotHere("the driver offers no prefetch to the host (CUDA 12.2 does)") from None
        self._prefetch.argtypes = [
            ctypes.c_uint64, ctypes.c_size_t, _Location, ctypes.c_uint, ctypes.c_void_p,
        ]  # fmt: skip
        self.ptr = probe.rt.mallocManaged(nbytes)
        ctypes.memset(self.ptr, 1, nbytes)

    def free(self) -> None:
        self.probe.rt.free(self.ptr)

    def prefetch(self, where: int, at: int = 0, nbytes: int | None = None) -> None:
        """Queue a prefetch of a part to `DEVICE` or `HOST`."""
        size = self.nbytes if nbytes is None else nbytes
        place = _Location(where, 0)
        code = self._prefetch(self.ptr + at, size, place, 0, self.probe.stream.ptr)
        if code:
            raise RuntimeError(f"cuMemPrefetchAsync_v2 failed with CUDA error {code}")

    def send_away(self) -> None:
        """All pages to the host, and wait for it."""
        self.prefetch(HOST)
        self.probe.stream.synchronize()

    # ---- faults ------------------------------------------------------------------------------

    def faults(self) -> list[Row]:
        """Rows with ``pattern``, ``bytes`` that became resident, ``touches`` made by the kernel.

        A row of stride s touches one byte in every s bytes, all threads at once; the driver fills in
        around a touch by its own rules, so no more is known here than time and span.
        """
        probe, span = self.probe, self.nbytes // 2
        rows = [self._one_page()]
        for stride, name in ((4 * KiB, "4 KiB"), (64 * KiB, "64 KiB"), (2 * MiB, "2 MiB")):
            touches = span // stride

            def touch(stride: int = stride, touches: int = touches) -> None:
                probe.run(
                    "touch", (touches + 255) // 256, 256, np.uint64(self.ptr),
                    np.uint64(stride), np.uint64(touches), probe.sink,
                )  # fmt: skip

            about = {"pattern": f"one byte in every {name}", "touches": touches}
            rows.append({**about, **self._fault(touch, span)})
        for size, name in ((span, "sequential, wide"), (EXPERT, "one expert, wide")):
            if size > self.nbytes:
                continue
            whole = size // 16 * 16
            found = self._fault(partial(probe.read, self.ptr, whole), size)
            rows.append({"pattern": name, "touches": size // 16, **found})
        return rows

    def _fault(self, kernel: Callable[[], None], nbytes: int) -> Row:
        def once() -> float:
            self.send_away()
            return self._event_ns(kernel)

        once()
        return row(repeat(once, 7, 0.6), nbytes)

    def _one_page(self) -> Row:
        """One thread, one page that is away, less the same launch with the page there."""
        probe, block = self.probe, 2 * MiB
        self.send_away()
        taken = []
        for i in range(min(64, self.nbytes // block)):
            args = (np.uint64(self.ptr + i * block), np.uint64(1), np.uint64(1), probe.sink)
            away = self._event_ns(partial(probe.run, "touch", 1, 1, *args))
            there = self._event_ns(partial(probe.run, "touch", 1, 1, *args))
            taken.append(max(away - there, 0.0))
        return {"pattern": "one thread, one page", "touches": 1, **row(taken)}

    def _event_ns(self, kernel: Callable[[], None]) -> float:
        first, last = self.probe.cp.cuda.Event(), self.probe.cp.cuda.Event()
        first.record(self.probe.stream)
        kernel()
        last.record(self.probe.stream)
        last.synchronize()
        return self.probe.cp.cuda.get_elapsed_time(first, last) * 1e6

    # ---- prefetches --------------------------------------------------------------------------

    def migrations(self) -> list[Row]:
        """Rows with ``what`` and ``call`` (bytes of one prefetch call); ``bytes`` in all."""
        stream, rows = self.probe.stream, []
        for call in (self.nbytes // 2, EXPERT, 2 * MiB):
            calls = max(1, min(self.nbytes // 2 // call, 32))
            if call * calls > self.nbytes:
                continue

            def move(where: int, call: int = call, calls: int = calls) -> float:
                begin = time.perf_counter_ns()
                for i in range(calls):
                    self.prefetch(where, i * call, call)
                stream.synchronize()
                return float(time.perf_counter_ns() - begin)

            into, clean, written = [], [], []
            for turn in range(6):
                self.send_away()
                into.append(move(DEVICE))
                clean.append(move(HOST))
                move(DEVICE)
                self.probe.rt.memsetAsync(self.ptr, turn, call * calls, stream.ptr)
                stream.synchronize()
                written.append(move(HOST))
            names = ("host to device", "device to host, clean", "device to host, written")
            for what, taken in zip(names, (into, clean, written), strict=True):
                rows.append({"what": what, "call": call, **row(taken[1:], call * calls)})
        return rows
