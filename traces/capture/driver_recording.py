"""Record the page faults and migrations of this process as the paging driver itself notes them.

```python
with DriverRecording("T.arrow") as recording:
    ...  # anything that uses managed memory
```

As `traces.capture.cupti.FaultRecording`, from below CUPTI (`traces.capture.uvm_queue`): every entry of
the fault buffer with its batch, replays, and the number of events that the driver found no room for.
Needs no package, driver 550 or newer, and the rights that CUPTI needs too.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from traces.capture import cuda_driver, provenance
from traces.capture.clock import Clock
from traces.capture.looks import Looks
from traces.capture.uvm_columns import CPU, OPTIONAL, columns
from traces.capture.uvm_queue import EventQueue, only
from traces.errors import InputError
from traces.faults import FaultWriter

POLL_S = 0.005
TRACER = "the paging driver's event queue"


def raw_ns() -> int:
    """The clock of the driver's times (uvm_linux.h, `NV_GETTIME`)."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


class DriverRecording:
    """Records into a fault trace while the ``with`` block runs.

    A clean end completes the trace; after an exception ``PATH.partial`` keeps what was recorded. Where
    no event came, no file is left and ``rows`` is 0. Times are ns since the start. Raises `InputError`
    where there is no GPU or the driver offers no events.
    """

    def __init__(
        self, path: str | Path, *, meta: dict[str, Any] | None = None, entries: int = 1 << 20
    ) -> None:
        """``entries``: room in the queue, a power of two, 72 bytes each."""
        self.path, self._meta, self._entries = Path(path), meta or {}, entries
        self.notes: list[str] = []
        self.rows = self.dropped = self.ignored = self.buffers = self.delivered = 0
        self.busy_ns = 0
        self.lost: dict[str, int] = {}
        self.remarks: dict[str, Any] = {}
        self.unwanted, self.flushed = False, True
        """``flushed``: the driver noted all that was done when it was asked at the end."""
        self.looks = Looks()
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> DriverRecording:
        devices = cuda_driver.start()
        cuda_driver.retain()
        self._queue = EventQueue(self._entries)
        self._origin = raw_ns()
        self.clock = Clock(raw_ns, self._origin)
        meta = {
            "tool": provenance.tool(),
            "machine": provenance.machine(devices=devices, gpu=", ".join(cuda_driver.names())),
            "tracer": TRACER,
            "origin_ns": self._origin,
        }
        try:
            self._writer = FaultWriter(self.path, meta | self._meta, optional=OPTIONAL)
            self._queue.enable()
        except BaseException:
            self._queue.close()
            raise
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()
        return self

    def now_ns(self) -> int:
        """Time since the start, on the clock of the records."""
        return raw_ns() - self._origin

    @property
    def origin_ns(self) -> int:
        """The driver's time of the start."""
        return self._origin

    def look(self) -> None:
        """Ask the page table where managed pages are; what moved between two looks is compared with
        the records when the recording ends."""
        cuda_driver.synchronize()
        if why := self.looks.take(self.now_ns()):
            self.notes.append(why)

    def settle(self) -> None:
        """Wait until what the driver noted so far is written."""
        self._queue.flush()
        self._take()

    def replaced(self) -> None:
        """This process is about to become another program: nothing of the recording is kept."""
        self.unwanted = True
        self._end()
        self._writer.discard()

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._queue is None:
            return
        try:
            cuda_driver.synchronize()
            self.flushed = self._queue.flush()
            self._take()
            self._queue.disable()
        except InputError as error:
            self.flushed = False
            self.notes.append(str(error))
        self.lost = self._end()
        self.dropped = sum(self.lost.values())
        self.clock.compare()
        self.rows = self._writer.rows
        if not self.flushed:
            self.notes.append(
                "the driver was not made to note what its channels have done: copies may be missing"
            )
        if self.dropped:
            what = ", ".join(f"{n:,} {k}" for k, n in self.lost.items())
            self.notes.append(f"the driver found no room for {what}: counts are too low")
        try:
            if not self.rows or self.unwanted:
                self._writer.discard()
            elif kind or self._failure:
                self._writer.abandon()
            else:
                self._writer.close(self._closing_remarks())
        except OSError as error:
            self._failure = self._failure or error
        if kind is None and self._failure is not None:
            if isinstance(self._failure, OSError):
                raise InputError(
                    f"{self.path}: writing failed ({self._failure}); what was recorded until then is "
                    "in the .partial file beside it"
                )
            raise self._failure

    def _closing_remarks(self) -> dict[str, Any]:
        return {
            "delivered": self.delivered, "dropped": self.dropped, "ignored": self.ignored,
            "lost": self.lost, "flushed": self.flushed, "buffers": self.buffers,
            "handover_ns": self.busy_ns, "clock_drift_ns": self.clock.drift_ns,
            "looks": self.looks.compared(),
            "managed": [list(r) for r in self.looks.ranges],
            "notes": list(self.notes),
        } | self.remarks  # fmt: skip

    def _drain(self) -> None:
        while not self._stop.wait(POLL_S):
            self._take()

    def _take(self) -> None:
        with self._lock:
            if self._queue is None:
                return
            begin = time.monotonic_ns()
            entries = self._queue.read()
            if not len(entries) or self._failure is not None:
                return
            try:
                self._write(entries)
            except BaseException as e:
                self._failure = e
            self.buffers += 1
            self.busy_ns += time.monotonic_ns() - begin

    def _write(self, entries: np.ndarray) -> None:
        self.delivered += len(entries)
        written = 0
        for made in columns(entries, self._origin, os.getpid()):
            self._writer.append(**made)
            written += len(made["time_ns"])
        self._writer.flush()  # a kill may come before the next ones do
        self.ignored += len(entries) - written
        m = only(entries, "migration")
        when = m["begin"].astype(np.int64) - self._origin
        self.looks.note(when, m["address"], m["bytes"], m["dst"] != CPU)

    def _end(self) -> dict[str, int]:
        """Stop the thread, take what is left, close the queue; events the driver lost, by kind."""
        self._stop.set()
        self._thread.join()
        self._take()
        lost = self._queue.dropped() if self._queue else {}
        with self._lock:
            if self._queue:
                self._queue.close()
            self._queue = None  # type: ignore[assignment]
        return lost
