"""Replay without a GPU: NumPy memory, memcpy, the same interface; for tests and for CI.

Work runs when it is queued, or, with ``shuffle``, as late as possible and in a random order that
the streams and events allow: an engine that forgets an event then computes with wrong bytes, and
its run is void.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from replay.backend.base import X_ROWS, Backend, Memory, Tasks
from replay.digest import checksum, row_hash
from replay.kernels import reference
from replay.layout import ExpertLayout
from traces.errors import InputError

ALIGN = 256


@dataclass(frozen=True)
class Faults:
    """What goes wrong, for tests; numbers count from 0 over the life of the backend."""

    copy_fails: int | None = None
    """This copy raises."""
    copy_corrupts: int | None = None
    """This copy delivers one wrong byte."""
    interrupt: int | None = None
    """Ctrl-C while this copy is queued."""
    device_bytes: int | None = None
    """Device memory there is."""


class HostBackend(Backend):
    """See the module; ``shuffle`` seeds the order in which queued work runs (None: at once)."""

    name = "host"

    def __init__(self, shuffle: int | None = None, faults: Faults | None = None):
        self.faults = faults or Faults()
        self._random = None if shuffle is None else random.Random(shuffle)
        self._live: dict[int, Memory] = {}
        self._queues: list[deque[tuple[str, Any]]] = [deque() for _ in range(4)]
        self._all_queues = [self._queues]
        """Of all devices that run together."""
        self._noted: list[int] = []
        """By event: number of its latest note, 0 before any."""
        self._notes = itertools.count(1)  # each `next` is one step, whatever the thread
        self._reached: set[int] = {0}
        """Notes that the work before them is done for."""
        self._times: list[int] = []
        self._copies, self._numbers = 0, itertools.count()

    # ---- life -----------------------------------------------------------------------------------

    def open(self) -> None: ...

    def close(self) -> None:
        for queue in self._queues:
            queue.clear()
        self._live.clear()

    @property
    def live_bytes(self) -> int:
        """Bytes allocated and not released."""
        return sum(m.nbytes for m in self._live.values())

    def machine(self) -> dict[str, Any]:
        return {
            "backend": "host",
            "device": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }

    def several(self, n: int) -> list[Backend]:
        made = [self]
        for _ in range(n - 1):
            other = type(self)()
            # Events, their times and the order in which work runs are the whole machine's.
            for name in (
                "faults",
                "_random",
                "_all_queues",
                "_noted",
                "_notes",
                "_reached",
                "_times",
            ):
                setattr(other, name, getattr(self, name))
            self._all_queues.append(other._queues)
            made.append(other)
        return list(made)

    def memory_info(self) -> tuple[int, int]:
        total = self.faults.device_bytes or 1 << 40
        used = sum(m.nbytes for m in self._live.values() if m.kind in ("device", "managed"))
        return total - used, total

    # ---- memory ---------------------------------------------------------------------------------

    def device(self, nbytes: int, what: str) -> Memory:
        free, _ = self.memory_info()
        if nbytes > free:
            raise InputError(
                f"{what}: {nbytes:,} bytes do not fit into the device's {free:,} free ones; "
                "give fewer `slots`"
            )
        return self._new(nbytes, "device")

    def host(self, nbytes: int, what: str, pinned: bool = True) -> Memory:
        return self._new(nbytes, "pinned" if pinned else "pageable")

    def managed(self, nbytes: int, what: str) -> Memory:
        return self._new(nbytes, "managed")

    def _new(self, nbytes: int, kind: str) -> Memory:
        raw = np.zeros(nbytes + ALIGN, np.uint8)
        start = -raw.ctypes.data % ALIGN
        array = raw[start : start + nbytes]
        memory = Memory(array.ctypes.data, nbytes, kind, array, raw)
        self._live[memory.ptr] = memory
        return memory

    def release(self, memory: Memory) -> None:
        self.synchronise()
        self._live.pop(memory.ptr, None)

    # ---- copies ---------------------------------------------------------------------------------

    def copy_in(self, dst: int, src: int, nbytes: int, stream: int) -> None:
        self._copy(dst, src, nbytes, stream)

    def copy_out(self, dst: int, src: int, nbytes: int, stream: int) -> None:
        self._copy(dst, src, nbytes, stream)

    def _copy(self, dst: int, src: int, nbytes: int, stream: int) -> None:
        number, f = next(self._numbers), self.faults
        self._copies = number + 1
        if number == f.interrupt:
            raise KeyboardInterrupt
        if number == f.copy_fails:
            raise InputError(f"copy number {number} of {nbytes:,} bytes failed (injected)")

        def work() -> None:
            ctypes.memmove(dst, src, nbytes)
            if number == f.copy_corrupts:
                ctypes.c_uint8.from_address(dst + nbytes // 2).value ^= 0x10

        self._queue(stream, work)

    def hop(self, dst: int, src: int, nbytes: int, stream: int, source: Backend) -> None:
        self._queue(stream, lambda: ctypes.memmove(dst, src, nbytes))

    def push(self, dst: int, src: int, nbytes: int, stream: int, target: Backend) -> None:
        self._queue(stream, lambda: ctypes.memmove(dst, src, nbytes))

    def migrate(self, ptr: int, nbytes: int, to_device: bool, stream: int) -> None:
        self._queue(stream, lambda: None)

    def advise(self, ptr: int, nbytes: int, advice: str) -> None: ...

    # ---- streams and events ---------------------------------------------------------------------

    def events(self, n: int, timing: bool = False) -> list[int]:
        first = len(self._noted)
        self._noted.extend([0] * n)
        self._times.extend([0] * n)
        return list(range(first, first + n))

    def forget(self, events: Sequence[int]) -> None: ...

    def record(self, event: int, stream: int) -> None:
        self._noted[event] = note = next(self._notes)

        def work() -> None:
            self._reached.add(note)
            self._times[event] = time.perf_counter_ns()

        self._queue(stream, work)

    def wait(self, stream: int, event: int) -> None:
        if self._random is not None:
            self._queues[stream].append(("wait", self._noted[event]))

    def reached(self, event: int) -> bool:
        if self._noted[event] in self._reached:
            return True
        self._run_one()  # time passes while the host asks
        return False

    def synchronise(self, event: int | None = None) -> None:
        if event is None:
            self._drain(lambda: not any(self._queues))
        else:
            note = self._noted[event]
            self._drain(lambda: note in self._reached)

    def elapsed_ns(self, start: int, end: int) -> int:
        return self._times[end] - self._times[start]

    def _queue(self, stream: int, work: Callable[[], Any]) -> None:
        if self._random is None:
            work()
        else:
            self._queues[stream].append(("work", work))

    def _drain(self, finished: Callable[[], bool]) -> None:
        while not finished():
            self._run_one()

    def _run_one(self) -> None:
        """Any of the work that may run now."""
        ready = [q for own in self._all_queues for q in own if q and self._may_run(*q[0])]
        assert ready and self._random is not None, "streams wait for one another"
        kind, work = self._random.choice(ready).popleft()
        if kind == "work":
            work()

    def _may_run(self, kind: str, what: Any) -> bool:
        return kind == "work" or what in self._reached

    # ---- kernels --------------------------------------------------------------------------------

    def prepare(
        self, layouts: Sequence[ExpertLayout], x: np.ndarray, rows: int, accesses: int
    ) -> None:
        assert x.shape[0] == X_ROWS
        self._x = np.ascontiguousarray(x, np.float32)
        self._sums = np.zeros(accesses, np.uint64)
        self._out = np.zeros((rows, x.shape[1]), np.float32)

    def read(self, memory: Memory, at: int, nbytes: int) -> None:
        self._queue(0, lambda: None)

    def experts(
        self, layout: ExpertLayout, tasks: Tasks, n: int, first_access: int, most: int = 0
    ) -> None:
        table = [
            (int(tasks.weights[t]), int(tasks.first_row[t]), int(tasks.tokens[t]),
             int(tasks.x_first[t]), first_access + t)
            for t in range(n)
        ]  # fmt: skip
        self._queue(0, lambda: self._compute(layout, table))

    def _compute(self, layout: ExpertLayout, table: list[tuple[int, int, int, int, int]]) -> None:
        for ptr, row, tokens, first, access in table:
            distinct = min(tokens, X_ROWS)
            order = [(first + t) % X_ROWS for t in range(distinct)]
            out = reference.expert(_bytes_at(ptr, layout.nbytes), layout, self._x[order])
            hashes = [row_hash(y) for y in out]
            total = int(self._sums[access])
            for t in range(tokens):
                self._out[row + t, : layout.n_embd] = out[t % X_ROWS]
                total += hashes[t % X_ROWS]
            self._sums[access] = total & 0xFFFFFFFFFFFFFFFF

    def clear_hashes(self) -> None:
        self._queue(0, lambda: self._sums.fill(0))

    def hashes(self, n: int) -> np.ndarray:
        self.synchronise()
        return self._sums[:n].copy()

    def outputs(self, layout: ExpertLayout, rows: int) -> np.ndarray:
        self.synchronise()
        return self._out[:rows, : layout.n_embd].copy()

    def checksums(self, ptrs: Sequence[int], nbytes: Sequence[int]) -> np.ndarray:
        self.synchronise()
        found = [checksum(_bytes_at(p, n)) for p, n in zip(ptrs, nbytes, strict=True)]
        return np.array(found, np.uint64)


def _bytes_at(ptr: int, nbytes: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(ptr))
