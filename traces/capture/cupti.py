"""Record the page faults and migrations of a CUDA program in this process, through CUPTI.

```python
with FaultRecording("T.arrow") as recording:
    ...  # anything that uses managed memory
print(recording.rows)
```

CUPTI's unified-memory counters report GPU page faults (fault groups of a page, with access type),
transfers each way (with their cause), CPU page faults, thrashing, throttling and remote mappings.
Needs the package ``cupti-python`` (the ``cupti`` extra), which is imported when a recording starts.
"""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from traces.capture import cuda_driver
from traces.capture.clock import Clock
from traces.capture.recorder import Recorder
from traces.capture.um_records import KINDS, Decoder
from traces.errors import InputError

BUFFER_BYTES = 8 << 20
DELIVERY_MS = 1000
"""How often CUPTI hands over what it has: what a kill can lose."""

_registered: Any = None
_active: FaultRecording | None = None


class FaultRecording(Recorder):
    """Records into a fault trace while the ``with`` block runs.

    A clean end completes the trace; after an exception ``PATH.partial`` keeps what was recorded.
    Where no event came, no file is left and ``rows`` is 0. Times are ns since the start. One
    recording at a time. Raises `InputError` where CUPTI or a GPU is missing or refuses.

    CUPTI's thread only copies records; they are taken apart and written by one of our own, so that
    it is back as soon as may be: what arrives while it is away may be lost.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        meta: dict[str, Any] | None = None,
        delivery_ms: int = DELIVERY_MS,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """``delivery_ms``: how often CUPTI hands over; ``buffer_bytes``: of each of its buffers."""
        super().__init__(path, meta)
        self._delivery_ms, self.buffer_bytes = delivery_ms, buffer_bytes

    def __enter__(self) -> FaultRecording:
        global _active, _registered
        if _active is not None:
            raise InputError(f"{_active.path} is being recorded: one CUPTI recording at a time")
        cupti = self._cupti = _load()
        devices = cuda_driver.start()
        try:
            origin = int(cupti.get_timestamp())
            self._origin = origin
            self._decoder = Decoder(cupti, origin)
            self.clock = Clock(lambda: int(cupti.get_timestamp()), origin)
        except Exception as e:
            raise _refused(cupti, e) from None
        self._writer = self._open("CUPTI unified-memory counters", devices, ["device"])
        self._queue: queue.SimpleQueue[np.ndarray | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_records, daemon=True)
        self._thread.start()
        _active = self
        try:
            if _registered is not cupti:  # CUPTI takes its callbacks once a process
                cupti.activity_register_callbacks(_buffer_requested, _buffer_completed)
                _registered = cupti
            _configure(cupti, devices)
            cupti.activity_enable(cupti.ActivityKind.UNIFIED_MEMORY_COUNTER)
        except Exception as e:
            _active = None
            self._end_thread()
            self._writer.discard()
            raise _refused(cupti, e) from None
        self._try(
            "deliver records in between",
            lambda: cupti.activity_flush_period(self._delivery_ms),
        )
        return self

    def now_ns(self) -> int:
        """Time since the start, on the clock of the records."""
        return int(self._cupti.get_timestamp()) - self._origin

    def settle(self) -> None:
        """Wait until what CUPTI handed over so far is on disk."""
        done = threading.Event()
        self._queue.put(done)
        done.wait()

    def replaced(self) -> None:
        """This process is about to become another program: nothing of the recording is kept, and
        the file's name is free for a new one."""
        global _active
        _active = None
        self.unwanted = True
        self._end_thread()
        self._writer.discard()

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        global _active
        if _active is not self:  # `replaced`, and yet still here
            return
        cupti = self._cupti
        activity = cupti.ActivityKind.UNIFIED_MEMORY_COUNTER
        self._try("wait for the GPU", cuda_driver.synchronize)
        # Forced, and before the end: without it CUPTI 13 keeps the buffer that GPU faults are in.
        self._try("hand over its records", lambda: cupti.activity_flush_all(1))
        self._try("stop", lambda: cupti.activity_disable(activity))
        self._try("hand over its last records", lambda: cupti.activity_flush_all(1))
        self._try("count lost records", self._count_dropped)
        self._try("tell the time", lambda: self.clock.compare())
        _active = None
        self._end_thread()
        self.rows = self._writer.rows
        if self.dropped:
            self.notes.append(f"CUPTI lost {self.dropped:,} records: counts are too low")
        if self.ignored:
            self.notes.append(f"{self.ignored:,} records of other kinds are left out")
        self._finish(self._writer, kind)

    def _completed(self, records: list[Any]) -> None:
        """Take over what CUPTI hands us, maybe in a thread of its own. Never raises: it would be
        lost there."""
        start = time.monotonic_ns()
        try:
            found = self._decoder.copy(records)
            self._queue.put(found)
            with self._lock:
                self.buffers += 1
                self.delivered += len(found)
                self.busy_ns += time.monotonic_ns() - start
        except BaseException as e:
            self._failure = self._failure or e

    def _write_records(self) -> None:
        """The thread that writes what `_completed` took over."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            if self._failure is not None:
                continue
            try:
                columns = self._decoder.columns(item)
                n = len(columns["time_ns"])
                self.ignored += len(item) - n
                if n:
                    self._note_moves(columns)
                    self._writer.append(**columns)
                    self._writer.flush()  # a kill may come before the next buffer does
            except BaseException as e:
                self._failure = e

    def _note_moves(self, columns: dict[str, Any]) -> None:
        if not len(self.looks):  # nobody will compare
            return
        kind = columns["kind"].cast("string").to_numpy(zero_copy_only=False)
        moves = (kind == "migration_in") | (kind == "migration_out")
        address, size = (columns[k].fill_null(0).to_numpy() for k in ("address", "bytes"))
        self.looks.note(
            columns["time_ns"][moves], address[moves], size[moves], kind[moves] == "migration_in"
        )

    def _end_thread(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _count_dropped(self) -> None:
        dropped = ctypes.c_size_t(0)
        self._cupti.activity_get_num_dropped_records(0, 0, ctypes.addressof(dropped))
        self.dropped = int(dropped.value)

    def _try(self, what: str, call: Any) -> None:
        """What fails at the end must not cost what was recorded."""
        try:
            call()
        except Exception as e:
            self.notes.append(f"CUPTI could not {what} ({e})")


def _buffer_requested() -> tuple[int, int]:
    size = _active.buffer_bytes if _active is not None else BUFFER_BYTES
    return size, 0  # 0: as many records as fit


def _buffer_completed(records: list[Any]) -> None:
    if _active is not None:
        _active._completed(records)


def _load() -> Any:
    try:
        return import_module("cupti.cupti")
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != "cupti":
            raise InputError(f"cupti-python cannot be loaded ({e}); install it again") from None
        raise InputError(
            "cupti-python is not installed; run: pip install 'uvmsim[cupti]'"
        ) from None
    except Exception as e:
        raise InputError(
            f"cupti-python cannot be loaded ({e}); its version must fit the CUDA driver's"
        ) from None


def _configure(cupti: Any, devices: int) -> None:
    kinds = [getattr(cupti.ActivityUnifiedMemoryCounterKind, name) for name in KINDS]
    config = cupti.ActivityUnifiedMemoryCounterConfig(devices * len(kinds))
    scope = cupti.ActivityUnifiedMemoryCounterScope.PROCESS_SINGLE_DEVICE
    for i in range(devices * len(kinds)):
        one = config[i]
        one.scope = int(scope)
        one.kind = int(kinds[i % len(kinds)])
        one.device_id = i // len(kinds)
        one.enable = 1
    cupti.activity_configure_unified_memory_counter(config.ptr, devices * len(kinds))


ADVICE = {
    "ERROR_INSUFFICIENT_PRIVILEGES": "run as root, or let the driver admit all users "
    "(NVreg_RestrictProfilingToAdminUsers=0)",
    "ERROR_UM_PROFILING_NOT_SUPPORTED_WITH_MPS": "stop the MPS server",
    "ERROR_UM_PROFILING_NOT_SUPPORTED_ON_NON_P2P_DEVICES": "show the program one GPU only "
    "(CUDA_VISIBLE_DEVICES=0)",
    "ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED": "end the other profiler",
    "ERROR_HARDWARE_BUSY": "end the other profiler",
}


def _refused(cupti: Any, e: Exception) -> InputError:
    status = getattr(e, "status", None)
    name = str(e)
    if status is not None:
        try:
            name = cupti.Result(status).name
        except (AttributeError, ValueError):
            name = f"error {status}"
    advice = ADVICE.get(name, "is this GPU's unified memory supported by CUPTI?")
    return InputError(f"CUPTI refuses to count unified-memory events ({name}); {advice}")
