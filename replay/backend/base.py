"""The interface between the replay engine and the memory, streams and kernels it drives.

Addresses are plain integers, as CUDA's are, so that the engine's arithmetic on slots is the same on
both backends. Work is queued on four streams and runs in order within each; *events* order streams
among one another with CUDA's rules:

- `record` notes the work queued on a stream so far; recording again replaces the note;
- `wait` makes what is queued later on a stream wait for the note an event holds **now** (an event
  never recorded holds nothing and is not waited for), so an event may be recorded again at once.

Kernels run on ``COMPUTE``. Everything a backend has allocated is released by `close`, which also
runs when an error or an interrupt leaves the ``with`` block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from replay.layout import ExpertLayout

COMPUTE, DEMAND, PREFETCH, BACK = range(4)
"""Streams: kernels; host-to-device copies on demand; the same ahead of demand; device-to-host."""

ADVICE = ("read-mostly", "preferred-host", "preferred-device", "accessed-by")

MAX_TASKS = 64
"""Most experts of one `Backend.experts` call: their table travels by value with the launch."""

X_ROWS = 8
"""Rows of input activations; token t of a call whose ``x_first`` is f reads row (f + t) % X_ROWS."""


@dataclass
class Memory:
    """One allocation. ``array`` (uint8 [nbytes]) where the host may touch it."""

    ptr: int
    nbytes: int
    kind: str
    """device, pinned, pageable or managed."""
    array: np.ndarray | None = None
    owner: Any = None
    """What keeps it alive, the backend's own business."""


@dataclass
class Tasks:
    """A table of expert calls, made once and refilled for every launch. Arrays of `MAX_TASKS`."""

    weights: np.ndarray
    """uint64: address of the expert's bytes."""
    first_row: np.ndarray
    """int32: first row of the hidden and output buffers the expert writes."""
    tokens: np.ndarray
    """int32: rows (tokens) of the expert."""
    x_first: np.ndarray
    """int32: input row of its first token, see `X_ROWS`."""
    address: int
    """Where the struct starts."""

    @staticmethod
    def empty() -> Tasks:
        """Tasks on one contiguous buffer, laid out as the CUDA kernels' struct of that name."""
        raw = np.zeros(MAX_TASKS * (8 + 3 * 4), np.uint8)
        ints = raw[MAX_TASKS * 8 :].view(np.int32).reshape(3, MAX_TASKS)
        weights = raw[: MAX_TASKS * 8].view(np.uint64)
        return Tasks(weights, ints[0], ints[1], ints[2], int(weights.ctypes.data))


class Backend(ABC):
    """Memory, streams, events and kernels. Methods may raise `traces.errors.InputError`."""

    name: str
    errors: tuple[type[Exception], ...] = ()
    """What the device's own calls raise."""

    # ---- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Backend:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def open(self) -> None:
        """Take the device; make the streams."""

    @abstractmethod
    def close(self) -> None:
        """Wait for queued work, then release everything ever allocated. Safe to call twice."""

    def enter_thread(self) -> None:  # noqa: B027
        """A thread that did not `open` calls this before it queues work."""

    @abstractmethod
    def machine(self) -> dict[str, Any]:
        """What ran: device, driver, versions; plain JSON types."""

    def select(self) -> None:  # noqa: B027 (one device is always the one)
        """Make this the device that calls go to, where several are driven by turns."""

    @abstractmethod
    def several(self, n: int) -> list[Backend]:
        """This open device and ``n - 1`` more of the machine, open too; `InputError` where there are
        fewer. Events of one may be waited for on another, and `hop` copies between them."""

    @abstractmethod
    def memory_info(self) -> tuple[int, int]:
        """Free and total device bytes."""

    # ---- memory ---------------------------------------------------------------------------------

    @abstractmethod
    def device(self, nbytes: int, what: str) -> Memory:
        """Plain device memory, 256-byte aligned; `InputError` naming ``what`` if it does not fit."""

    @abstractmethod
    def host(self, nbytes: int, what: str, pinned: bool = True) -> Memory:
        """Host memory, page-locked (and readable by kernels) if ``pinned``."""

    @abstractmethod
    def managed(self, nbytes: int, what: str) -> Memory:
        """Managed memory (`cudaMallocManaged`). The caller has checked the size."""

    @abstractmethod
    def release(self, memory: Memory) -> None:
        """Give one allocation back; nothing may still use it."""

    # ---- copies ---------------------------------------------------------------------------------

    @abstractmethod
    def copy_in(self, dst: int, src: int, nbytes: int, stream: int) -> None:
        """Queue a copy from host to device: one ``cudaMemcpyAsync``."""

    @abstractmethod
    def copy_out(self, dst: int, src: int, nbytes: int, stream: int) -> None:
        """Queue a copy from device to host."""

    @abstractmethod
    def hop(self, dst: int, src: int, nbytes: int, stream: int, source: Backend) -> None:
        """Queue a copy into this device's memory from that of ``source`` (`several`)."""

    @abstractmethod
    def push(self, dst: int, src: int, nbytes: int, stream: int, target: Backend) -> None:
        """Queue a copy from this device's memory into that of ``target``, on a stream of this one."""

    @abstractmethod
    def migrate(self, ptr: int, nbytes: int, to_device: bool, stream: int) -> None:
        """Queue a prefetch of managed memory to the device or to the host."""

    @abstractmethod
    def advise(self, ptr: int, nbytes: int, advice: str) -> None:
        """One of `ADVICE` for a range of managed memory."""

    # ---- events ---------------------------------------------------------------------------------

    @abstractmethod
    def events(self, n: int, timing: bool = False) -> list[int]:
        """``n`` new events; only those with ``timing`` may be given to `elapsed_ns`."""

    @abstractmethod
    def forget(self, events: Sequence[int]) -> None:
        """Destroy events that nothing uses any more."""

    @abstractmethod
    def record(self, event: int, stream: int) -> None: ...

    @abstractmethod
    def wait(self, stream: int, event: int) -> None: ...

    @abstractmethod
    def reached(self, event: int) -> bool:
        """Whether the work an event notes is done, without waiting; True if it was never recorded."""

    @abstractmethod
    def synchronise(self, event: int | None = None) -> None:
        """Block the host until an event (None: all queued work) is done."""

    @abstractmethod
    def elapsed_ns(self, start: int, end: int) -> int:
        """Nanoseconds between two finished events, both with timing."""

    # ---- kernels, all on COMPUTE ----------------------------------------------------------------

    @abstractmethod
    def prepare(
        self, layouts: Sequence[ExpertLayout], x: np.ndarray, rows: int, accesses: int
    ) -> None:
        """Load kernels and allocate their buffers, replacing those of an earlier call.

        ``x`` float32 [X_ROWS, widest n_embd]: input activations. ``rows``: most token rows of one
        `experts` call. ``accesses``: how many output hashes are kept.
        """

    @abstractmethod
    def read(self, memory: Memory, at: int, nbytes: int) -> None:
        """Queue a kernel that reads ``nbytes`` of ``memory`` at memory speed and keeps nothing.

        It starts at byte ``at`` (a multiple of 16) and goes on at the front where it meets the
        end, so that a buffer larger than the last-level cache stands for any number of bytes.
        Works on device, pinned and managed memory.
        """

    @abstractmethod
    def experts(
        self, layout: ExpertLayout, tasks: Tasks, n: int, first_access: int, most: int = 0
    ) -> None:
        """Queue ``down @ (silu(gate @ x) * (up @ x))`` for the first ``n`` tasks.

        A token's result depends on the weights and its input row alone, bit for bit, whatever else
        is in the call. Task t adds the hashes (see `replay.digest`) of its output rows to the sum
        kept at ``first_access + t``. ``tasks`` may be refilled at once. ``most``: the most tokens
        of a task, 0 to look.
        """

    @abstractmethod
    def clear_hashes(self) -> None:
        """Queue setting all sums of `experts` to zero."""

    @abstractmethod
    def hashes(self, n: int) -> np.ndarray:
        """uint64 [n]: the first sums, once all queued work is done."""

    @abstractmethod
    def outputs(self, layout: ExpertLayout, rows: int) -> np.ndarray:
        """float32 [rows, n_embd]: output rows of the latest `experts` call, once it is done."""

    @abstractmethod
    def checksums(self, ptrs: Sequence[int], nbytes: Sequence[int]) -> np.ndarray:
        """uint64: `replay.digest.checksum` of ranges the device can read, once all work is done."""
