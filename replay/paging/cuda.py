"""An NVIDIA GPU under measurement: CuPy for kernels and times, the driver's event queue for counts."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import numpy as np

from replay.paging.device import PagingDevice, Seen
from replay.paging.touches import BLOCK, PAGE, Touches
from traces.capture.residency import (
    DEVICE_0,
    HOST,
    host_frames,
    map_on_host,
    on_host,
    prefetch,
    run_lengths,
)
from traces.capture.uvm_queue import ENTRY_BYTES, EventQueue
from traces.errors import InputError

MOST = 8 << 30
"""Bytes of managed memory that are never exceeded."""


class CudaPaging(PagingDevice):
    """The current device of CuPy. ``nbytes``: of the arena, a multiple of 2 MiB.

    Raises `InputError` where there is no GPU, no room, or no way to see the driver's events.
    """

    def __init__(self, nbytes: int, events: bool = True) -> None:
        try:
            import cupy
        except ImportError:
            raise InputError("CuPy is not installed; pip install 'uvmsim[gpu]'") from None
        self.cp, self.rt = cupy, cupy.cuda.runtime
        free, _ = self.rt.memGetInfo()
        if nbytes > min(MOST, free // 2) or nbytes % BLOCK:
            raise InputError(
                f"paging: {nbytes:,} bytes of managed memory; at most half of what is free "
                f"({free:,}) and 8 GiB, in blocks of 2 MiB"
            )
        self.nbytes, self.pages = nbytes, nbytes // PAGE
        properties = self.rt.getDeviceProperties(cupy.cuda.Device().id)
        self._gpu = properties["name"].decode()
        self.sms = int(properties["multiProcessorCount"])
        self.threads_per_sm = int(properties["maxThreadsPerMultiProcessor"])
        source = Path(__file__).with_name("walk.cu").read_text(encoding="utf-8")
        module = cupy.RawModule(code=source)
        self._walk, self._write = module.get_function("walk"), module.get_function("write_all")
        self._out = cupy.zeros(4, cupy.uint32)
        self._lists: dict[int, Any] = {}
        self.ptr, self._unmapped = 0, False
        self.raw = np.zeros((0, ENTRY_BYTES), np.uint8)
        """The driver's events of the last recorded run, as they came."""
        self._load()
        self.queue = EventQueue() if events else None

    def _load(self) -> None:
        """Both kernels once on plain memory, so that none is loaded inside a measurement."""
        plain = self.cp.zeros(PAGE, self.cp.uint8)
        pages = self.cp.zeros(1, self.cp.uint32)
        args = (plain, pages, np.int32(1), np.int32(1), np.int32(1), self._out)
        self._walk((1,), (32,), args)
        self._write((1,), (32,), (plain, np.uint64(1), np.uint32(0)))
        self.cp.cuda.get_elapsed_time(*self._events())
        self.rt.deviceSynchronize()

    def _events(self) -> tuple[Any, Any]:
        first, last = self.cp.cuda.Event(), self.cp.cuda.Event()
        first.record()
        last.record()
        last.synchronize()
        return first, last

    def about(self) -> dict[str, Any]:
        from replay.calibrate.cuda import driver_version

        cuda = self.rt.runtimeGetVersion()
        attribute = self.cp.cuda.Device().attributes
        return {
            "gpu": self._gpu, "driver": driver_version(), "sms": self.sms,
            "threads_per_sm": self.threads_per_sm,
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}", "cupy": self.cp.__version__,
            "pageable_memory_access": int(attribute.get("PageableMemoryAccess", -1)),
        }  # fmt: skip

    # ---- the arena -------------------------------------------------------------------------------

    def renew(self, host: str) -> dict[str, Any]:
        self._free()
        self.ptr = int(self.rt.mallocManaged(self.nbytes))
        begin = time.perf_counter_ns()
        if host == "ordered":
            ctypes.memset(self.ptr, 1, self.nbytes)
        elif host == "scattered":
            view = (ctypes.c_uint8 * self.nbytes).from_address(self.ptr)
            pages = np.ctypeslib.as_array(view).reshape(self.pages, PAGE)
            for p in np.random.default_rng(1).permutation(self.pages).tolist():
                pages[p, 0] = 1
        else:
            self._move(DEVICE_0)
            self._fill(0x01010101)
        touched = time.perf_counter_ns() - begin
        begin = time.perf_counter_ns()
        self.away()
        first = time.perf_counter_ns() - begin
        mapped = float(on_host(self.ptr, self.nbytes).mean())
        self._unmapped = mapped < 1  # then the page table says where pages are only once they are
        found: dict[str, Any] = {
            "host": host, "touched_ns": touched, "first_away_ns": first, "mapped_after": mapped,
        }  # fmt: skip
        self.away()
        frames = host_frames(self.ptr, self.nbytes)
        if frames is not None:
            runs = run_lengths(frames)
            found["host_runs"] = {
                "runs": len(runs), "mean_bytes": float(runs.mean()) * PAGE if len(runs) else 0.0,
                "pages_by_run": {
                    str(PAGE << i): int(runs[(runs >= 1 << i) & (runs < 2 << i)].sum())
                    for i in range(10)
                } | {"more": int(runs[runs >= 1 << 10].sum())},
            }  # fmt: skip
        return found

    def _fill(self, value: int) -> None:
        args = (np.uint64(self.ptr), np.uint64(self.nbytes // 16), np.uint32(value))
        self._write((8 * self.sms,), (256,), args)
        self.rt.deviceSynchronize()

    def _move(self, where: tuple[int, int], at: int = 0, nbytes: int | None = None) -> None:
        size = self.nbytes if nbytes is None else nbytes
        code = prefetch(self.ptr + at, size, where, int(self.cp.cuda.get_current_stream().ptr))
        if code:
            raise InputError(f"paging: the driver refuses a prefetch (CUDA error {code})")

    def away(self) -> None:
        """Everything to the host, and wait for it."""
        self._move(HOST)
        self.rt.deviceSynchronize()
        if self._unmapped:
            map_on_host(self.ptr, self.nbytes)

    # ---- runs ------------------------------------------------------------------------------------

    def _list(self, t: Touches) -> Any:
        if id(t) not in self._lists:
            if len(self._lists) > 64:
                self._lists.clear()
            self._lists[id(t)] = (t, self.cp.asarray(t.pages))
            self.rt.deviceSynchronize()
        return self._lists[id(t)][1]

    def _run(self, t: Touches) -> float:
        pages = self._list(t)
        warps, turns = t.pages.shape
        args = (
            np.uint64(self.ptr), pages, np.int32(turns), np.int32(warps), np.int32(t.chained),
            self._out,
        )  # fmt: skip
        first, last = self.cp.cuda.Event(), self.cp.cuda.Event()
        first.record()
        self._walk((-(-warps // t.warps_per_block),), (32 * t.warps_per_block,), args)
        last.record()
        last.synchronize()
        return float(self.cp.cuda.get_elapsed_time(first, last)) * 1e6

    def _set_out(self, t: Touches) -> None:
        """Everything to the host, but for what the touches find on the GPU."""
        self._list(t)
        self.away()
        for first, last in t.placed.tolist() if t.placed is not None else ():
            self._move(DEVICE_0, first * PAGE, (last - first) * PAGE)
        self.rt.deviceSynchronize()

    def time(self, touches: Touches) -> float:
        self._set_out(touches)
        return self._run(touches)

    def again(self, touches: Touches) -> float:
        return self._run(touches)

    def record(self, touches: Touches) -> tuple[float, Seen]:
        self._set_out(touches)
        return self.noted(lambda: self._run(touches))

    def noted(self, work: Any) -> tuple[float, Seen]:
        """``work()`` -> ns, with the driver's events noted."""
        if self.queue is None:
            raise InputError("paging: opened without the driver's events")
        self.queue.flush()
        self.queue.read()
        before = self.queue.dropped()
        self.queue.enable()
        try:
            taken = float(work())
            self.rt.deviceSynchronize()
            self.queue.flush()
        finally:
            self.queue.disable()
        self.raw = entries = self.queue.read()
        lost = {
            k: n - before.get(k, 0)
            for k, n in self.queue.dropped().items() if n > before.get(k, 0)
        }  # fmt: skip
        arrived = ~on_host(self.ptr, self.nbytes)
        return taken, Seen.of(entries, self.ptr, lost, arrived)

    def move_out(self, piece: int, total: int, written: bool) -> float:
        self._move(DEVICE_0, 0, total)
        self.rt.deviceSynchronize()
        if written:
            args = (np.uint64(self.ptr), np.uint64(total // 16), np.uint32(0x01010101))
            self._write((8 * self.sms,), (256,), args)
            self.rt.deviceSynchronize()
        begin = time.perf_counter_ns()
        for at in range(0, total, piece):
            self._move(HOST, at, piece)
        self.rt.deviceSynchronize()
        return float(time.perf_counter_ns() - begin)

    def move_in(self, piece: int, total: int) -> float:
        """ns of prefetching ``total`` bytes to the device in calls of ``piece`` bytes."""
        self.away()
        begin = time.perf_counter_ns()
        for at in range(0, total, piece):
            self._move(DEVICE_0, at, piece)
        self.rt.deviceSynchronize()
        return float(time.perf_counter_ns() - begin)

    def write_on_cpu(self, page: int) -> None:
        """The CPU writes a byte of a page: a CPU fault where it is on the GPU."""
        ctypes.memset(self.ptr + page * PAGE, 1, 1)

    def _free(self) -> None:
        if self.ptr:
            self.rt.deviceSynchronize()
            self.rt.free(self.ptr)
            self.ptr = 0

    def close(self) -> None:
        if self.queue is not None:
            self.queue.close()
        self._free()
        self._lists.clear()
