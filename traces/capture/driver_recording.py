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

from traces.capture import cuda_driver
from traces.capture.clock import Clock
from traces.capture.recorder import Recorder
from traces.capture.uvm_columns import CPU, OPTIONAL, columns
from traces.capture.uvm_queue import EventQueue, only
from traces.errors import InputError

POLL_S = 0.005
TRACER = "the paging driver's event queue"


def raw_ns() -> int:
    """The clock of the driver's times (uvm_linux.h, `NV_GETTIME`)."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


class DriverRecording(Recorder):
    """Records into a fault trace while the ``with`` block runs.

    A clean end completes the trace; after an exception ``PATH.partial`` keeps what was recorded. Where
    no event came, no file is left and ``rows`` is 0. Times are ns since the start. Raises `InputError`
    where there is no GPU or the driver offers no events.
    """

    def __init__(
        self, path: str | Path, *, meta: dict[str, Any] | None = None, entries: int = 1 << 20
    ) -> None:
        """``entries``: room in the queue, a power of two, 72 bytes each."""
        super().__init__(path, meta)
        self._entries = entries
        self.lost: dict[str, int] = {}
        """By kind: events that found no room."""
        self.flushed = True
        """The driver noted all that was done when it was asked at the end."""
        self._stop = threading.Event()

    def __enter__(self) -> DriverRecording:
        devices = cuda_driver.start()
        cuda_driver.retain()
        self._queue = EventQueue(self._entries)
        self._origin = raw_ns()
        self.clock = Clock(raw_ns, self._origin)
        try:
            self._writer = self._open(TRACER, devices, OPTIONAL)
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
        self._finish(self._writer, kind)

    def _closing_remarks(self) -> dict[str, Any]:
        return super()._closing_remarks() | {"lost": self.lost, "flushed": self.flushed}

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
