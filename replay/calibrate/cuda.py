"""The probe of an NVIDIA GPU: explicit copies and kernels, through CuPy.

Work is queued behind a kernel that only waits, so that what is timed by events is the device's
speed and not how fast Python can queue; what queueing costs the host is measured by itself.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from replay.calibrate.managed import ManagedMemory
from replay.calibrate.probe import HANDOVER, MiB, NotHere, Probe
from replay.calibrate.stats import Row, repeat, row
from traces.errors import InputError

SOURCE = r"""
extern "C" __global__ void wait_ns(unsigned long long ns) {
    unsigned long long begin, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
    do { asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); } while (now - begin < ns);
}
extern "C" __global__ void nothing() {}
extern "C" __global__ void read_all(const uint4* __restrict__ p, unsigned long long n,
                                    unsigned int* out) {
    unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned int s = 0;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 a = p[i], b = p[i + step], c = p[i + 2 * step], d = p[i + 3 * step];
        s ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
        s ^= c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; i < n; i += step) { uint4 a = p[i]; s ^= a.x ^ a.y ^ a.z ^ a.w; }
    if (s == 0x9E3779B9u) out[0] = s;
}
extern "C" __global__ void touch(const unsigned char* p, unsigned long long stride,
                                 unsigned long long n, unsigned int* out) {
    unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && p[i * stride] == 0xFE) out[0] = 1;
}
"""
H2D, D2H = 1, 2
"""cudaMemcpyKind."""


class CudaProbe(Probe):
    """One GPU, the current device of CuPy. Raises `InputError` where there is none."""

    name = "cuda"

    def __init__(self, effort: Any):
        super().__init__(effort)
        try:
            import cupy
        except ImportError:
            raise InputError(
                "CuPy is not installed; pip install -e '.[gpu]' in the checkout, or use --backend host"
            ) from None
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as err:
            raise InputError(f"no usable NVIDIA GPU ({err}); use --backend host") from None
        if not count:
            raise InputError("no NVIDIA GPU; use --backend host")
        self.cp, self.rt = cupy, cupy.cuda.runtime
        module = cupy.RawModule(code=SOURCE)
        self.kernel = {
            k: module.get_function(k) for k in ("wait_ns", "nothing", "read_all", "touch")
        }
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.second = cupy.cuda.Stream(non_blocking=True)
        self.sink = cupy.zeros(4, cupy.uint32)
        self.blocks = 8 * cupy.cuda.Device().attributes["MultiProcessorCount"]
        biggest = max(effort.copy_sizes)
        self.held = max(effort.big, 2 * biggest)
        self.device = cupy.cuda.alloc(self.held)
        self.rt.memset(self.device.ptr, 1, self.held)
        self.pinned = cupy.cuda.alloc_pinned_memory(2 * biggest)
        np.frombuffer(self.pinned, np.uint8)[:] = 1
        self._managed: ManagedMemory | None = None

    # ---- the machine -------------------------------------------------------------------------

    def machine(self) -> dict[str, Any]:
        properties = self.rt.getDeviceProperties(self.cp.cuda.Device().id)
        cuda = self.rt.runtimeGetVersion()
        return {
            "gpu": properties["name"].decode(),
            "driver": driver_version(),
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
            "cupy": self.cp.__version__,
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "numpy": np.__version__,
            "python": platform.python_version(),
        }

    def vram_bytes(self) -> int:
        """What is free now and what this probe holds itself."""
        free, _ = self.rt.memGetInfo()
        return int(free + self.held)

    # ---- timing ------------------------------------------------------------------------------

    def queued(self, work: Callable[[int], None], batch: int, issue_ns: int = 8000) -> float:
        """ns of one of ``batch`` calls ``work(i)``, all queued on the stream before the first
        begins."""
        first, last = self.cp.cuda.Event(), self.cp.cuda.Event()
        self.run("wait_ns", 1, 1, np.uint64(batch * issue_ns + 50_000))
        first.record(self.stream)
        for i in range(batch):
            work(i)
        last.record(self.stream)
        last.synchronize()
        return self.cp.cuda.get_elapsed_time(first, last) * 1e6 / batch

    def run(self, kernel: str, blocks: int, threads: int, *args: Any, stream: Any = None) -> None:
        """Launch one of the probe's own kernels."""
        with stream or self.stream:
            self.kernel[kernel]((blocks,), (threads,), args)

    def copy(self, direction: str, size: int, at: int = 0, stream: Any = None) -> None:
        """Queue one pinned copy; ``at`` is its offset in both buffers."""
        device, host = self.device.ptr + at, self.pinned.ptr + at
        to, source = (device, host) if direction == "h2d" else (host, device)
        kind = H2D if direction == "h2d" else D2H
        self.rt.memcpyAsync(to, source, size, kind, (stream or self.stream).ptr)

    def read(self, address: int, nbytes: int) -> None:
        """Queue a kernel that reads ``nbytes`` from ``address``."""
        words = nbytes // 16
        blocks = min(self.blocks, max(1, words // 1024))
        self.run("read_all", blocks, 256, np.uint64(address), np.uint64(words), self.sink)

    # ---- copies ------------------------------------------------------------------------------

    def copies(self, direction: str, pinned: bool = True) -> list[Row]:
        if not pinned:
            return self._pageable(direction)
        span = 2 * max(self.effort.copy_sizes)
        rows = []
        for size in self.effort.copy_sizes:
            batch = int(min(100, max(3, 128 * MiB // size)))

            def one(i: int, size: int = size) -> None:
                self.copy(direction, size, i * size % span if span % size == 0 else 0)

            self.queued(one, batch)
            times = repeat(partial(self.queued, one, batch), self.effort.repetitions)
            rows.append(row(times, size, queued=batch))
        return rows

    def _pageable(self, direction: str) -> list[Row]:
        rows = []
        for size in self.effort.copy_sizes[-9::4]:
            host = np.ones(size, np.uint8)
            address, device = host.ctypes.data, self.device.ptr
            to, source = (device, address) if direction == "h2d" else (address, device)
            kind = H2D if direction == "h2d" else D2H

            def once(
                to: int = to, source: int = source, size: int = size, kind: int = kind
            ) -> float:
                begin = time.perf_counter_ns()
                self.rt.memcpyAsync(to, source, size, kind, self.stream.ptr)
                self.stream.synchronize()
                return float(time.perf_counter_ns() - begin)

            once()
            rows.append(row(repeat(once, 7), size))
        return rows

    def single_copies(self, direction: str) -> list[Row]:
        rows = []
        for size in self.effort.copy_sizes:

            def once(size: int = size) -> float:
                begin = time.perf_counter_ns()
                self.copy(direction, size)
                self.stream.synchronize()
                return float(time.perf_counter_ns() - begin)

            once()
            rows.append(row(repeat(once, 2 * self.effort.repetitions, 0.2), size))
        return rows

    def both_ways(self) -> list[Row]:
        rows = []
        for size in (16 * MiB, max(self.effort.copy_sizes)):
            size = min(size, max(self.effort.copy_sizes))
            for direction, opposite in (("h2d", "d2h"), ("d2h", "h2d")):
                for busy in (False, True):

                    def once(size: int = size, direction: str = direction,
                             opposite: str = opposite, busy: bool = busy) -> float:  # fmt: skip
                        batch = max(4, 256 * MiB // size)
                        if busy:  # begins before and ends after what is timed
                            for _ in range(2 * batch + 4):
                                self.copy(opposite, size, size, self.second)
                        taken = self.queued(lambda i: self.copy(direction, size), batch, 4000)
                        self.second.synchronize()
                        return taken

                    once()
                    about = {"direction": direction, "other": "busy" if busy else "idle"}
                    rows.append({**about, **row(repeat(once, 7), size)})
        return rows

    # ---- another GPU -------------------------------------------------------------------------

    def devices(self) -> int:
        return int(self.rt.getDeviceCount())

    def peers(self) -> list[Row]:
        if self.devices() < 2:
            raise NotHere("one GPU")
        from replay.calibrate.peers import peer_rows

        return peer_rows(self)

    # ---- kernels -----------------------------------------------------------------------------

    def launches(self) -> list[Row]:
        def issue(work: Callable[[], None]) -> list[float]:
            taken = []
            for _ in range(20):
                self.stream.synchronize()
                begin = time.perf_counter_ns()
                for _ in range(50):
                    work()
                taken.append((time.perf_counter_ns() - begin) / 50)
            return taken

        def round_trip() -> float:
            begin = time.perf_counter_ns()
            self.copy("d2h", 64)
            self.stream.synchronize()
            return float(time.perf_counter_ns() - begin)

        nothing = self.kernel["nothing"]

        def launch(i: int = 0) -> None:
            with self.stream:
                nothing((1,), (32,), ())

        chain = [self.cp.cuda.Event(disable_timing=True) for _ in range(400)]

        def handover(i: int) -> None:
            launch()
            chain[2 * i].record(self.stream)
            self.second.wait_event(chain[2 * i])
            self.copy("h2d", 4096, stream=self.second)
            chain[2 * i + 1].record(self.second)
            self.stream.wait_event(chain[2 * i + 1])

        launch()
        round_trip()
        return [
            row(issue(lambda: self.copy("h2d", 64)), what="issue a copy"),
            row(issue(launch), what="issue a kernel"),
            row(repeat(lambda: self.queued(launch, 200), 15), what="empty kernel"),
            row([round_trip() for _ in range(200)], what="copy and wait"),
            row(
                repeat(lambda: self.queued(handover, 200, 40_000), 9),
                what=HANDOVER,
            ),
        ]

    def pinned_alloc(self) -> list[Row]:
        size = self.effort.big // 8

        def once() -> float:
            begin = time.perf_counter_ns()
            address = self.rt.hostAlloc(size, 0)
            taken = float(time.perf_counter_ns() - begin)
            self.rt.freeHost(address)
            return taken

        once()
        return [row(repeat(once, 7), size)]

    def reads(self) -> list[Row]:
        rows = []
        span = self.effort.big
        for size in (MiB, 4 * MiB, 12 * MiB, 24 * MiB, 64 * MiB, 256 * MiB, span):
            if size > span:
                continue
            places = span // size
            batch = int(max(2, min(64, 2 * span // size)))

            def one(i: int, size: int = size, places: int = places) -> None:
                self.read(self.device.ptr + i % places * size, size)

            self.queued(one, batch)
            times = repeat(partial(self.queued, one, batch), self.effort.repetitions)
            rows.append({"kernel": "stream", **row(times, size)})
        return rows

    def zero_copy(self) -> list[Row]:
        size = max(self.effort.copy_sizes)

        def one(i: int) -> None:
            self.read(self.pinned.ptr + i % 2 * size, size)

        self.queued(one, 2)
        return [row(repeat(lambda: self.queued(one, 2), 7), size)]

    # ---- managed memory ----------------------------------------------------------------------

    @property
    def managed(self) -> ManagedMemory:
        if self._managed is None:
            free, _ = self.rt.memGetInfo()
            if self.effort.managed > free // 2:
                raise NotHere(
                    f"the card has {free / 1e9:.1f} GB free; too little to page {self.effort.managed}"
                )
            self._managed = ManagedMemory(self, self.effort.managed)
        return self._managed

    def faults(self) -> list[Row]:
        return self.managed.faults()

    def migrations(self) -> list[Row]:
        return self.managed.migrations()

    def close(self) -> None:
        self.stream.synchronize()
        self.second.synchronize()
        if self._managed is not None:
            self._managed.free()
            self._managed = None
        del self.pinned, self.device
        self.cp.get_default_memory_pool().free_all_blocks()
        self.cp.get_default_pinned_memory_pool().free_all_blocks()


def driver_version() -> str:
    """The driver's version as its kernel module gives it."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", first)
    return found.group(1) if found else "unknown"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
