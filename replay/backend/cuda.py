"""Replay on an NVIDIA card: CuPy's bindings of the CUDA runtime, and kernels of our own.

Nothing goes through CuPy's memory pool, so what is allocated here is all there is, and `close` gives
all of it back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from replay.backend.base import COMPUTE, X_ROWS, Backend, Memory, Tasks
from replay.kernels.launch import Kernel
from replay.kernels.loader import TOKEN_BLOCKS, WARPS, load
from replay.layout import ExpertLayout
from traces.errors import InputError

DISABLE_TIMING, NON_BLOCKING = 2, 1
SUCCESS, NOT_READY = 0, 600
"""What a query of an event says."""
ANY_DIRECTION = 4
"""cudaMemcpyDefault: the addresses say which way (the bank may be pinned, pageable or managed)."""
BLOCKS_PER_SM = 3
"""Blocks of the expert kernels a multiprocessor gets: enough loads in flight, few idle at the end."""


class CudaBackend(Backend):
    """See the module. ``index`` is the device's number."""

    name = "cuda"

    def __init__(self, index: int = 0):
        self.index = index
        self._live: dict[int, Memory] = {}
        self._events: set[int] = set()
        self._streams: list[int] = []
        self._buffers: list[Memory] = []
        self._expert_kernels: dict[tuple[ExpertLayout, int], tuple[Kernel, Kernel]] = {}
        self._grids: dict[tuple[int, int, int], tuple[Any, ...]] = {}
        self._modules: dict[str, Any] = {}
        self.reaches: set[int] = set()
        """Devices whose memory is copied from without the host."""

    # ---- life -----------------------------------------------------------------------------------

    def open(self) -> None:
        try:
            import cupy
            from cupy_backends.cuda.api import driver, runtime
        except ImportError as err:
            raise InputError(
                f"backend cuda needs CuPy ({err}): pip install -e '.[gpu]' in the checkout, or use "
                "`backend` host"
            ) from None
        self._cupy, self._rt = cupy, runtime
        self.errors = (runtime.CUDARuntimeError, driver.CUDADriverError)
        try:
            if runtime.getDeviceCount() <= self.index:
                raise InputError(f"no CUDA device {self.index}; use `backend` host to run without")
        except runtime.CUDARuntimeError as err:
            raise InputError(f"no CUDA device ({err}); use `backend` host to run without") from None
        runtime.setDevice(self.index)
        runtime.free(0)  # makes the context
        p = runtime.getDeviceProperties(self.index)
        self._properties = p
        self.sms = int(p["multiProcessorCount"])
        optin = runtime.deviceGetAttribute(
            runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, self.index
        )
        self._shared_limit = int(optin) - 1024
        self._streams = [runtime.streamCreateWithFlags(NON_BLOCKING) for _ in range(4)]
        self._compute = self._streams[COMPUTE]
        self._sink = self.device(256, "scratch")
        memory = load("memory.cu")
        self._read = Kernel(memory, "read_window", [0, 0, 0, 0, self._sink.ptr])
        self._checksum = Kernel(memory, "checksum", [0, 0, 0])

    def close(self) -> None:
        if not self._streams:
            return
        with suppress(*self.errors):
            self.select()
        # After a failed kernel every call fails; what is left is then freed with the process.
        with suppress(*self.errors):
            self._rt.deviceSynchronize()
        for event in self._events:
            with suppress(*self.errors):
                self._rt.eventDestroy(event)
        for memory in list(self._live.values()):
            with suppress(*self.errors):
                self.release(memory)
        for stream in self._streams:
            with suppress(*self.errors):
                self._rt.streamDestroy(stream)
        self._live.clear()
        self._expert_kernels.clear()
        self._grids.clear()
        self._events, self._streams, self._buffers = set(), [], []

    def enter_thread(self) -> None:
        self._rt.setDevice(self.index)

    def machine(self) -> dict[str, Any]:
        p, rt = self._properties, self._rt
        version = Path("/proc/driver/nvidia/version")
        words = version.read_text().split() if version.exists() else []
        # "NVRM version: NVIDIA UNIX ... Kernel Module [for x86_64] 580.159.04 Release Build ..."
        driver = next(
            (w for w in words if w.count(".") >= 1 and w.replace(".", "").isdigit()), None
        )
        return {
            "backend": "cuda",
            "device": p["name"].decode(),
            "memory_bytes": int(p["totalGlobalMem"]),
            "multiprocessors": self.sms,
            "compute_capability": f"{p['major']}.{p['minor']}",
            "driver": driver,
            "cuda_driver_api": rt.driverGetVersion(),
            "cuda_runtime": rt.runtimeGetVersion(),
            "cupy": self._cupy.__version__,
            "numpy": np.__version__,
        }

    def select(self) -> None:
        self._rt.setDevice(self.index)

    def several(self, n: int) -> list[Backend]:
        there = self._rt.getDeviceCount()
        if there < n:
            raise InputError(f"{n}: this machine has {there} CUDA device(s)", argument="gpus")
        made = [self, *(CudaBackend(i) for i in range(there) if i != self.index)][:n]
        try:
            for other in made[1:]:
                other.open()
            for one in made:
                one.select()
                for other in made:
                    one._reach(other)
        except BaseException:
            for other in made[1:]:
                other.close()
            raise
        self.select()
        return list(made)

    def _reach(self, other: CudaBackend) -> None:
        """Copies from the other device go straight here, where the machine can do that; else the
        driver takes them through host memory."""
        if other is self or other.index in self.reaches:
            return
        if self._rt.deviceCanAccessPeer(self.index, other.index):
            with suppress(self._rt.CUDARuntimeError):  # enabled already by an earlier run
                self._rt.deviceEnablePeerAccess(other.index)
            self.reaches.add(other.index)

    def memory_info(self) -> tuple[int, int]:
        free, total = self._rt.memGetInfo()
        return int(free), int(total)

    # ---- memory ---------------------------------------------------------------------------------

    def device(self, nbytes: int, what: str) -> Memory:
        free, _ = self.memory_info()
        if nbytes > free:
            raise InputError(
                f"{what}: {nbytes:,} bytes do not fit into the card's {free:,} free ones; "
                "give fewer `slots`"
            )
        return self._new(lambda: self._rt.malloc(nbytes), nbytes, "device", what)

    def host(self, nbytes: int, what: str, pinned: bool = True) -> Memory:
        if not pinned:
            array = np.zeros(nbytes, np.uint8)
            memory = Memory(array.ctypes.data, nbytes, "pageable", array, array)
            self._live[memory.ptr] = memory
            return memory
        return self._new(lambda: self._rt.hostAlloc(nbytes, 0), nbytes, "pinned", what)

    def managed(self, nbytes: int, what: str) -> Memory:
        return self._new(lambda: self._rt.mallocManaged(nbytes), nbytes, "managed", what)

    def _new(self, allocate: Any, nbytes: int, kind: str, what: str) -> Memory:
        try:
            ptr = int(allocate())
        except self.errors as err:
            raise InputError(
                f"{what}: {nbytes:,} bytes of {kind} memory cannot be had ({err})"
            ) from None
        array = None
        if kind != "device":
            array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(ptr))
        memory = Memory(ptr, nbytes, kind, array)
        self._live[ptr] = memory
        return memory

    def release(self, memory: Memory) -> None:
        if self._live.pop(memory.ptr, None) is None:
            return
        self._rt.deviceSynchronize()
        if memory.kind == "pinned":
            self._rt.freeHost(memory.ptr)
        elif memory.kind != "pageable":
            self._rt.free(memory.ptr)

    # ---- copies ---------------------------------------------------------------------------------

    def copy_in(self, dst: int, src: int, nbytes: int, stream: int) -> None:
        self._rt.memcpyAsync(dst, src, nbytes, ANY_DIRECTION, self._streams[stream])

    def copy_out(self, dst: int, src: int, nbytes: int, stream: int) -> None:
        self._rt.memcpyAsync(dst, src, nbytes, ANY_DIRECTION, self._streams[stream])

    def hop(self, dst: int, src: int, nbytes: int, stream: int, source: Backend) -> None:
        assert isinstance(source, CudaBackend)
        self._rt.memcpyPeerAsync(dst, self.index, src, source.index, nbytes, self._streams[stream])

    def push(self, dst: int, src: int, nbytes: int, stream: int, target: Backend) -> None:
        assert isinstance(target, CudaBackend)
        self._rt.memcpyPeerAsync(dst, target.index, src, self.index, nbytes, self._streams[stream])

    def migrate(self, ptr: int, nbytes: int, to_device: bool, stream: int) -> None:
        self._managed_calls().prefetch(ptr, nbytes, to_device, self._streams[stream])

    def advise(self, ptr: int, nbytes: int, advice: str) -> None:
        self._managed_calls().advise(ptr, nbytes, advice)

    def _managed_calls(self) -> Any:
        from replay.backend.managed import ManagedCalls

        if not hasattr(self, "_managed_memory"):
            self._managed_memory = ManagedCalls(self.index)
        return self._managed_memory

    # ---- events ---------------------------------------------------------------------------------

    def events(self, n: int, timing: bool = False) -> list[int]:
        flags = 0 if timing else DISABLE_TIMING
        new = [int(self._rt.eventCreateWithFlags(flags)) for _ in range(n)]
        self._events.update(new)
        return new

    def forget(self, events: Sequence[int]) -> None:
        for event in events:
            self._rt.eventDestroy(event)
        self._events.difference_update(events)

    def record(self, event: int, stream: int) -> None:
        self._rt.eventRecord(event, self._streams[stream])

    def wait(self, stream: int, event: int) -> None:
        self._rt.streamWaitEvent(self._streams[stream], event)

    def reached(self, event: int) -> bool:
        status = self._rt.eventQuery(event)
        if status not in (SUCCESS, NOT_READY):
            raise self._rt.CUDARuntimeError(status)
        return bool(status == SUCCESS)

    def synchronise(self, event: int | None = None) -> None:
        if event is None:
            self._rt.deviceSynchronize()
        else:
            self._rt.eventSynchronize(event)

    def elapsed_ns(self, start: int, end: int) -> int:
        return round(self._rt.eventElapsedTime(start, end) * 1e6)

    # ---- kernels --------------------------------------------------------------------------------

    def prepare(
        self, layouts: Sequence[ExpertLayout], x: np.ndarray, rows: int, accesses: int
    ) -> None:
        for old in self._buffers:
            self.release(old)
        self._expert_kernels.clear()
        self._grids.clear()
        assert x.shape[0] == X_ROWS and x.flags.c_contiguous and x.dtype == np.float32
        self._x_stride = x.shape[1]
        widest = max(layout.n_ff for layout in layouts)
        self._x = self.device(x.nbytes, "inputs")
        self._hidden = self.device(rows * widest * 4, "hidden activations")
        self._out = self.device(rows * x.nbytes // X_ROWS, "outputs")
        self._sums = self.device(accesses * 8, "output hashes")
        self._buffers = [self._x, self._hidden, self._out, self._sums]
        self._rt.memcpy(self._x.ptr, x.ctypes.data, x.nbytes, ANY_DIRECTION)
        self._rt.deviceSynchronize()  # a pageable copy may return before its last byte is there
        for layout in layouts:
            if layout.dtype not in self._modules:
                self._modules[layout.dtype] = load("experts.cu", layout.dtype)
            for tokens in TOKEN_BLOCKS:
                pair = self._pair(layout, tokens)
                if pair is None:
                    break
                self._expert_kernels[layout, tokens] = pair
            if (layout, 1) not in self._expert_kernels:
                raise InputError(
                    f"an expert of {layout.n_embd} x {layout.n_ff} is wider than the card's shared "
                    f"memory of {self._shared_limit:,} bytes allows"
                )

    def _pair(self, layout: ExpertLayout, tokens: int) -> tuple[Kernel, Kernel] | None:
        """Both kernels for blocks of ``tokens``; None where their inputs exceed shared memory."""
        shared = [tokens * 4 * n for n in (layout.n_embd, layout.n_ff)]
        if max(shared) > self._shared_limit:
            return None
        module = self._modules[layout.dtype]
        gate_up = Kernel(
            module, f"gate_up_{tokens}",
            [self._x.ptr, self._x_stride, self._hidden.ptr, layout.n_embd, layout.n_ff, 1],
            struct=0, shared=shared[0],
        )  # fmt: skip
        down = Kernel(
            module, f"down_{tokens}",
            [self._hidden.ptr, self._out.ptr, self._x_stride, self._sums.ptr,
             layout.n_embd, layout.n_ff, layout.nbytes, 1],
            struct=0, shared=shared[1],
        )  # fmt: skip
        return gate_up, down

    def read(self, memory: Memory, at: int, nbytes: int) -> None:
        size = memory.nbytes // 16
        units = -(-nbytes // 16)
        if not units:
            return
        self._read.values[:4] = (memory.ptr, size, at // 16 % size, units)
        self._read(self._compute, min(self.sms * 8, -(-units // 256)))

    def experts(
        self, layout: ExpertLayout, tasks: Tasks, n: int, first_access: int, most: int = 0
    ) -> None:
        most = most or int(tasks.tokens[:n].max())
        # Everything but addresses follows from these; looked up, since each layer comes by here.
        key = (id(layout), n, most)
        grids = self._grids.get(key)
        if grids is None:
            grids = self._grids[key] = self._grid(layout, n, most)
        _, gate_up, down, chunks, gate_passes, gate_blocks, down_passes, down_blocks = grids
        address, compute = tasks.address, self._compute
        gate_up.params[0] = down.params[0] = address
        gate_up.values[5] = gate_passes
        gate_up(compute, gate_blocks, n, chunks)
        values = down.values
        values[3] = self._sums.ptr + 8 * first_access
        values[7] = down_passes
        down(compute, down_blocks, n, chunks)

    def _grid(self, layout: ExpertLayout, n: int, most: int) -> tuple[Any, ...]:
        """Kernels and launch shapes of `experts`; the layout comes first so that it stays alive."""
        block = next((t for t in TOKEN_BLOCKS if t >= most), TOKEN_BLOCKS[-1])
        while (layout, block) not in self._expert_kernels:
            block //= 2
        gate_up, down = self._expert_kernels[layout, block]
        chunks, room = -(-most // block), BLOCKS_PER_SM * self.sms
        gate = _passes(layout.n_ff, n * chunks, room)
        out = _passes(layout.n_embd // 2, n * chunks, room)
        return (
            layout, gate_up, down, chunks,
            gate, -(-layout.n_ff // (WARPS * gate)), out, -(-layout.n_embd // (2 * WARPS * out)),
        )  # fmt: skip

    def clear_hashes(self) -> None:
        self._rt.memsetAsync(self._sums.ptr, 0, self._sums.nbytes, self._compute)

    def hashes(self, n: int) -> np.ndarray:
        self.synchronise()
        return self._fetch(self._sums.ptr, (n,), np.uint64)

    def outputs(self, layout: ExpertLayout, rows: int) -> np.ndarray:
        self.synchronise()
        return self._fetch(self._out.ptr, (rows, self._x_stride), np.float32)[:, : layout.n_embd]

    def checksums(self, ptrs: Sequence[int], nbytes: Sequence[int]) -> np.ndarray:
        self.synchronise()
        if not len(ptrs):
            return np.zeros(0, np.uint64)
        sums = self.device(8 * len(ptrs), "checksums")
        self._rt.memsetAsync(sums.ptr, 0, sums.nbytes, self._compute)
        for i, (ptr, n) in enumerate(zip(ptrs, nbytes, strict=True)):
            self._checksum.values[:] = (ptr, n, sums.ptr + 8 * i)
            self._checksum(self._compute, min(self.sms * 8, -(-n // 1024)))
        self.synchronise()
        found = self._fetch(sums.ptr, (len(ptrs),), np.uint64)
        self.release(sums)
        return found

    def _fetch(self, ptr: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        out = np.empty(shape, dtype)
        if out.nbytes:
            self._rt.memcpy(out.ctypes.data, ptr, out.nbytes, ANY_DIRECTION)
        return out


def _passes(rows: int, columns: int, room: int) -> int:
    """Rows (or pairs) each warp takes in turn, so that about ``room`` blocks make up the grid."""
    return max(1, min(16, round(rows * columns / (WARPS * room))))
