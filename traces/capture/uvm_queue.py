"""The paging driver's own queue of events, read as the driver writes it.

nvidia-uvm offers tools a ring in their memory (uvm_tools.c, uvm_ioctl.h, uvm_types.h of
NVIDIA/open-gpu-kernel-modules): every entry of the fault buffer with its batch, every migration with
its cause, every replay. CUPTI sits on top of it, sums faults up by block and does not say what it lost;
here the ring is as large as asked for, and the driver counts what found no room in it.

```python
with EventQueue() as queue:
    ...                       # work on managed memory
    queue.flush()
    events = queue.read()     # raw entries; `only` sorts them out
    lost = queue.dropped()
```

A queue watches this process alone, which must have started CUDA. It changes nothing but the time that
faults take.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from traces.capture import cuda_driver
from traces.errors import InputError

DEVICE, SPACE = "/dev/nvidia-uvm-tools", "/dev/nvidia-uvm"
ENTRY_BYTES = 72
"""sizeof(UvmEventEntry_V2)"""
VERSION = 2
"""UvmToolsEventQueueVersion_V2, drivers from 550 on"""
INIT_TRACKER, ENABLE, DISABLE, FLUSH, INIT_TRACKER_V2 = 56, 58, 59, 67, 76
"""UVM_TOOLS_INIT_EVENT_TRACKER, _EVENT_QUEUE_ENABLE_EVENTS, _DISABLE_EVENTS, _FLUSH_EVENTS, and
_INIT_EVENT_TRACKER_V2 of drivers whose first one gives version 1 alone (580)"""
KINDS = {
    "cpu_fault": 1, "migration": 2, "gpu_fault": 3, "replay": 4, "overflow": 5, "fatal_fault": 6,
    "thrashing": 10, "throttling": 11, "remote_map": 13, "eviction": 14,
}  # fmt: skip
"""UvmEventType of what is asked for."""
GET_AHEAD, GET_BEHIND, PUT_AHEAD, PUT_BEHIND = range(4)
DROPPED_550, DROPPED_580, CONTROL_TYPES = 24, 16, 64
"""Offset and length of UvmToolsEventControlData_V2.dropped: behind a version, and without one."""
SCRATCH_BYTES = 64 << 10


def _layout(**fields: tuple[str, int]) -> np.dtype:
    """A record's type from ``name=(format, offset)``; every one fills an entry."""
    return np.dtype(
        {
            "names": ["type", *fields],
            "formats": ["u1", *(f for f, _ in fields.values())],
            "offsets": [0, *(at for _, at in fields.values())],
            "itemsize": ENTRY_BYTES,
        }
    )


MIGRATION = _layout(
    cause=("u1", 1), src=("u2", 4), dst=("u2", 6), address=("u8", 16), bytes=("u8", 24),
    begin=("u8", 32), end=("u8", 40), begin_gpu=("u8", 56), end_gpu=("u8", 64),
)  # fmt: skip
"""UvmEventMigrationInfo_V2: a run of pages that lie side by side and have one cause."""
GPU_FAULT = _layout(
    fault=("u1", 1), access=("u1", 2), gpc=("u2", 4), client=("u2", 6), address=("u8", 8),
    time=("u8", 16), time_gpu=("u8", 24), batch=("u4", 32), client_type=("u1", 36), gpu=("u2", 38),
)  # fmt: skip
"""UvmEventGpuFaultInfo_V2: an entry of the fault buffer, duplicates too. ``time``: when its block's
service looked at it; ``time_gpu``: when the GPU wrote it."""
REPLAY = _layout(
    client_type=("u1", 1), gpu=("u2", 2), batch=("u4", 4), time=("u8", 8), time_gpu=("u8", 16)
)
"""UvmEventGpuFaultReplayInfo_V2: ``time`` when it was queued, ``time_gpu`` when it was done."""
CPU_FAULT = _layout(
    access=("u1", 1), address=("u8", 8), time=("u8", 16), pid=("u4", 24), thread=("u4", 28)
)
THRASHING = _layout(address=("u8", 8), bytes=("u8", 16), time=("u8", 24))
THROTTLING = _layout(processor=("u2", 6), address=("u8", 8), time=("u8", 16))
REMOTE_MAP = _layout(
    cause=("u1", 1), src=("u2", 4), dst=("u2", 6), address=("u8", 8), bytes=("u8", 16),
    time=("u8", 24), time_gpu=("u8", 32),
)  # fmt: skip
EVICTION = _layout(
    src=("u2", 4), dst=("u2", 6), address=("u8", 8), address_in=("u8", 16), bytes=("u8", 24),
    time=("u8", 32),
)  # fmt: skip
LAYOUTS = {
    "cpu_fault": CPU_FAULT, "migration": MIGRATION, "gpu_fault": GPU_FAULT, "replay": REPLAY,
    "thrashing": THRASHING, "throttling": THROTTLING, "remote_map": REMOTE_MAP,
    "eviction": EVICTION,
}  # fmt: skip


class _Tracker(ctypes.Structure):
    """UVM_TOOLS_INIT_EVENT_TRACKER_PARAMS"""

    _fields_ = (
        ("queue", ctypes.c_uint64), ("count", ctypes.c_uint64), ("control", ctypes.c_uint64),
        ("processor", ctypes.c_uint8 * 16), ("all_processors", ctypes.c_uint32),
        ("uvm_fd", ctypes.c_uint32), ("status", ctypes.c_uint32), ("asked", ctypes.c_uint32),
        ("granted", ctypes.c_uint32),
    )  # fmt: skip


class _Flags(ctypes.Structure):
    """UVM_TOOLS_EVENT_QUEUE_ENABLE_EVENTS_PARAMS"""

    _fields_ = (("flags", ctypes.c_uint64), ("status", ctypes.c_uint32))


class _Status(ctypes.Structure):
    """UVM_TOOLS_FLUSH_EVENTS_PARAMS"""

    _fields_ = (("status", ctypes.c_uint32),)


class Ring:
    """The shared memory of a queue: ``count`` entries (a power of two) and the control block."""

    def __init__(self, count: int) -> None:
        if count < 2 or count & (count - 1):
            raise ValueError("a queue's length is a power of two")
        self.count = count
        # Shared, so that a fork does not part these pages from those that the driver writes.
        self._entries = mmap.mmap(-1, count * ENTRY_BYTES)
        self._control = mmap.mmap(-1, mmap.PAGESIZE)
        self.entries = np.frombuffer(self._entries, np.uint8).reshape(count, ENTRY_BYTES)
        self.place = np.frombuffer(self._control, np.uint32, 4)
        self.dropped_at(DROPPED_550)
        self.entries[:: mmap.PAGESIZE // ENTRY_BYTES] = 0  # there before the driver pins it

    def dropped_at(self, offset: int) -> None:
        """Where the control block counts what found no room, by kind."""
        self.lost = np.frombuffer(self._control, np.uint64, CONTROL_TYPES, offset)

    @property
    def addresses(self) -> tuple[int, int]:
        """Of the entries and of the control block."""
        return int(self.entries.ctypes.data), int(self.place.ctypes.data)

    def read(self) -> np.ndarray:
        """uint8 [n, ENTRY_BYTES]: what was put there since the last call, copied; its room is free
        again."""
        mask = self.count - 1
        first, last = int(self.place[GET_BEHIND]) & mask, int(self.place[PUT_BEHIND]) & mask
        if first <= last:
            found = self.entries[first:last].copy()
        else:
            found = np.concatenate((self.entries[first:], self.entries[:last]))
        self.place[GET_AHEAD] = self.place[GET_BEHIND] = last
        return found

    def dropped(self) -> dict[str, int]:
        """By kind: events that found no room."""
        return {name: int(self.lost[code]) for name, code in KINDS.items() if self.lost[code]}


class EventQueue:
    """An open queue of this process' paging events; use ``with``.

    ``count``: entries of the ring, a power of two. Raises `InputError` where the driver offers none.
    """

    def __init__(self, count: int = 1 << 20) -> None:
        self.ring = Ring(count)
        self._flushes, self._scratch, self._space = True, 0, -1
        self._file = _open()
        self.close()  # it is there
        spaces = uvm_files()
        if not spaces:
            raise InputError("this process has no address space with the paging driver: start CUDA")
        why: list[str] = []
        # A file takes one tracker, and one of version 1 too where the request knows no other.
        for request in (INIT_TRACKER_V2, INIT_TRACKER):
            for space in spaces:  # the one that is an address space: others are refused
                self._file = _open()
                try:
                    why.append(self._start(request, space))
                except InputError as e:
                    why.append(str(e))
                if not why[-1]:
                    self._space = space
                    return
                self.close()
        raise InputError(f"the paging driver gives no event queue ({why[-1]}); take CUPTI")

    def _start(self, request: int, space: int) -> str:
        """Why it cannot; empty where it can."""
        queue, control = self.ring.addresses
        asked = _Tracker(queue, self.ring.count, control, uvm_fd=space, asked=VERSION)
        if code := self._call(self._file, request, asked):
            return f"status {code:#x}"
        if request == INIT_TRACKER_V2:
            self.ring.dropped_at(DROPPED_580)
            return ""
        return "" if asked.granted == VERSION else "its events are of before driver 550"

    @staticmethod
    def _call(file: int, request: int, params: ctypes.Structure) -> int:
        """The driver's status, 0 where all is well."""
        if file < 0:
            raise InputError("this event queue is closed")
        try:
            fcntl.ioctl(file, request, params)  # type: ignore[call-overload]
        except OSError as e:
            raise InputError(
                f"the paging driver refuses an event queue ({e.strerror or e}); take CUPTI"
            ) from None
        return int(params.status)  # type: ignore[attr-defined]

    def enable(self, *kinds: str) -> None:
        """Begin to note events of ``kinds`` (default: all of `KINDS`)."""
        self._flags(ENABLE, kinds)

    def disable(self, *kinds: str) -> None:
        """Note them no more; those that are noted stay."""
        self._flags(DISABLE, kinds)

    def _flags(self, request: int, kinds: tuple[str, ...]) -> None:
        flags = sum(1 << KINDS[k] for k in kinds or KINDS)
        if code := self._call(self._file, request, _Flags(flags)):
            raise InputError(f"the paging driver does not note events (status {code:#x})")

    def flush(self) -> bool:
        """Wait until the driver has noted all that is done. (Migrations and replays are noted when
        their channel is seen to have done them, and a channel that is not used again is not looked at:
        up to 1,023 services' copies each.) False where the driver would not, and some may be missing.
        """
        if self._file < 0:
            raise InputError("this event queue is closed")
        if self._flushes:
            try:
                # A request to the address space's file (uvm.c, `uvm_ioctl`), not to the tools'.
                if not self._call(self._space, FLUSH, _Status()):
                    return True
            except InputError:
                pass
            self._flushes = False
        # Have it look at its copies some other way: the channels that it uses for these, at least.
        if not self._scratch:
            self._scratch = cuda_driver.managed(SCRATCH_BYTES)
        if self._scratch:
            cuda_driver.there_and_back(self._scratch, SCRATCH_BYTES)
        return False

    def read(self) -> np.ndarray:
        """See `Ring.read`; what a `flush` moved is left out."""
        found = self.ring.read()
        if not self._scratch:
            return found
        moved = found.view(MIGRATION).reshape(-1)
        mine = (moved["type"] == KINDS["migration"]) & (
            moved["address"] - np.uint64(self._scratch) < SCRATCH_BYTES
        )
        return found[~mine]

    def dropped(self) -> dict[str, int]:
        """See `Ring.dropped`."""
        return self.ring.dropped()

    def close(self) -> None:
        """End it; the driver lets go of the ring."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> EventQueue:
        self.enable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def only(entries: np.ndarray, kind: str) -> np.ndarray:
    """The entries (uint8 [n, `ENTRY_BYTES`]) of one kind, in their own layout."""
    chosen = np.ascontiguousarray(entries[entries[:, 0] == KINDS[kind]])
    return chosen.view(LAYOUTS[kind]).reshape(-1)


def uvm_files() -> list[int]:
    """File numbers of this process' connections to the paging driver."""
    found: list[int] = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()) == SPACE:
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return sorted(found)


def _open() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        why: Any = e.strerror or e
        if e.errno == errno.ENOENT:
            why = f"{DEVICE} is not there"
        raise InputError(f"the paging driver's events cannot be read ({why}); take CUPTI") from None
