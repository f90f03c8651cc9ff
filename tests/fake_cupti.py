"""A stand-in for ``cupti.cupti`` (package cupti-python): the parts that recording uses.

Names, layouts and numbers are those of cupti-python 13.0.1. A program under test calls `emit`.
"""

from __future__ import annotations

import ctypes
import enum
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from traces.capture import cuda_driver

RECORD = np.dtype(
    {
        "names": [
            *("kind", "counter_kind", "value", "start", "end", "address", "src_id", "dst_id"),
            *("stream_id", "process_id", "flags_", "pad", "processors"),
        ],
        "formats": [
            *("<i4", "<i4", "<u8", "<u8", "<u8", "<u8", "<u4", "<u4", "<u4", "<u4", "<u4", "<u4"),
            ("<u8", (5,)),
        ],
        "offsets": [0, 4, 8, 16, 24, 32, 40, 44, 48, 52, 56, 60, 64],
        "itemsize": 104,
    }
)
NOW = 1_000_000
KINDS = ("BYTES_TRANSFER_HTOD", "BYTES_TRANSFER_DTOH", "CPU_PAGE_FAULT_COUNT", "GPU_PAGE_FAULT")
KINDS += ("THRASHING", "THROTTLING", "REMOTE_MAP", "BYTES_TRANSFER_DTOD")


class CuptiError(Exception):
    """As ``cuptiError``: carries a status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Config:
    """As ``ActivityUnifiedMemoryCounterConfig``: an array of settings with an address."""

    def __init__(self, n: int) -> None:
        self.items: list[Any] = [type("One", (), {})() for _ in range(n)]
        self.ptr = id(self)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


class Record:
    """A record inside CUPTI's buffer."""

    def __init__(self, buffer: np.ndarray, i: int) -> None:
        self._buffer, self._i = buffer, i

    @property
    def ptr(self) -> int:
        return int(self._buffer.ctypes.data + self._i * self._buffer.dtype.itemsize)

    @property
    def kind(self) -> int:
        return int(self._buffer["kind"][self._i])


class FakeCupti:
    """The module. ``refuse`` maps a function's name to the status it fails with."""

    activity_unified_memory_counter3_dtype = RECORD
    activity_unified_memory_counter2_dtype = np.dtype("<i4")
    ActivityUnifiedMemoryCounterConfig = Config
    cuptiError = CuptiError
    ActivityKind = enum.IntEnum("ActivityKind", {"KERNEL": 3, "UNIFIED_MEMORY_COUNTER": 25})
    ActivityUnifiedMemoryCounterKind = enum.IntEnum(
        "CounterKind", {"UNKNOWN": 0} | {n: i + 1 for i, n in enumerate(KINDS)}
    )
    ActivityUnifiedMemoryCounterScope = enum.IntEnum(
        "Scope", {"PROCESS_SINGLE_DEVICE": 1, "PROCESS_ALL_DEVICES": 2}
    )
    ActivityUnifiedMemoryAccessType = enum.IntEnum(
        "AccessType", {"UNKNOWN": 0, "READ": 1, "WRITE": 2, "ATOMIC": 3, "PREFETCH": 4}
    )
    ActivityUnifiedMemoryMigrationCause = enum.IntEnum(
        "MigrationCause",
        {
            "UNKNOWN": 0,
            "USER": 1,
            "COHERENCE": 2,
            "PREFETCH": 3,
            "EVICTION": 4,
            "ACCESS_COUNTERS": 5,
        },
    )
    ActivityUnifiedMemoryRemoteMapCause = enum.IntEnum(
        "RemoteMapCause",
        {
            "UNKNOWN": 0,
            "COHERENCE": 1,
            "THRASHING": 2,
            "POLICY": 3,
            "OUT_OF_MEMORY": 4,
            "EVICTION": 5,
        },
    )
    Result = enum.IntEnum(
        "Result", {"ERROR_INSUFFICIENT_PRIVILEGES": 35, "ERROR_HARDWARE_BUSY": 26}
    )

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.refuse: dict[str, int] = {}
        self.dropped = 0
        self.held: list[Record] = []
        self.config: Config | None = None
        self._done: Callable[[list[Record]], None] | None = None

    def _called(self, name: str, *args: Any) -> None:
        self.calls.append((name, *args))
        if name in self.refuse:
            raise CuptiError(self.refuse[name])

    def get_timestamp(self) -> int:
        self._called("get_timestamp")
        return NOW

    def activity_register_callbacks(self, requested: Any, completed: Any) -> None:
        self._called("activity_register_callbacks")
        size, most = requested()
        assert size > RECORD.itemsize and most == 0
        self._done = completed

    def activity_configure_unified_memory_counter(self, pointer: int, count: int) -> None:
        self._called("activity_configure_unified_memory_counter", count)

    def activity_enable(self, kind: int) -> None:
        self._called("activity_enable", int(kind))

    def activity_disable(self, kind: int) -> None:
        self._called("activity_disable", int(kind))

    def activity_flush_period(self, ms: int) -> None:
        self._called("activity_flush_period", ms)

    def activity_flush_all(self, flag: int) -> None:
        self._called("activity_flush_all", flag)
        held, self.held = self.held, []
        if held:
            self.deliver(held)

    def activity_get_num_dropped_records(self, context: int, stream: int, pointer: int) -> None:
        self._called("activity_get_num_dropped_records")
        ctypes.c_size_t.from_address(pointer).value = self.dropped

    # What a test drives

    def emit(self, records: Sequence[dict[str, Any]], *, now: bool = False) -> None:
        """Record events, given as fields of `RECORD`; delivered at the next flush, or now."""
        buffer = np.zeros(len(records), RECORD)
        buffer["kind"] = 25
        buffer["process_id"] = 77
        for i, fields in enumerate(records):
            for name, value in fields.items():
                buffer[name][i] = value
        made = [Record(buffer, i) for i in range(len(records))]
        if now:
            self.deliver(made)
        else:
            self.held += made

    def deliver(self, records: list[Record]) -> None:
        """Hand records to whoever registered, as CUPTI's own thread does."""
        assert self._done is not None
        self._done(records)


def install(fake: FakeCupti, monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
    """In place of the package, in a process whose driver has so many devices."""
    package = type(sys)("cupti")
    package.__dict__["cupti"] = fake
    monkeypatch.setitem(sys.modules, "cupti", package)
    monkeypatch.setitem(sys.modules, "cupti.cupti", fake)
    monkeypatch.setattr(cuda_driver, "start", lambda: devices)
    monkeypatch.setattr(cuda_driver, "synchronize", lambda: None)
