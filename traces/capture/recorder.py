"""What recordings of page faults share, whoever tells of the faults: the trace, its ending, looks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from traces.capture import cuda_driver, provenance
from traces.capture.clock import Clock
from traces.capture.looks import Looks
from traces.errors import InputError
from traces.faults import FaultWriter


class Recorder:
    """A fault trace being written. A clean end completes it; after an exception ``PATH.partial`` keeps
    what was recorded. Where no event came, no file is left and ``rows`` is 0."""

    clock: Clock

    def __init__(self, path: str | Path, meta: dict[str, Any] | None) -> None:
        self.path, self._meta = Path(path), meta or {}
        self.looks = Looks()
        self.notes: list[str] = []
        self.rows = 0
        self.ignored = 0
        """Records of kinds that a fault trace does not have, or without a time."""
        self.dropped = 0
        """Records that were lost for want of room."""
        self.buffers = 0
        """Times that records were handed over."""
        self.delivered = 0
        """Records that were."""
        self.busy_ns = 0
        """How long that took."""
        self.remarks: dict[str, Any] = {}
        """More to be said in the trace's metadata (``recording``) when it is closed."""
        self.unwanted = False
        """Leave nothing behind."""
        self._origin = 0
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def now_ns(self) -> int:
        """Time since the start, on the clock of the records."""
        raise NotImplementedError

    @property
    def origin_ns(self) -> int:
        """The start, on that clock."""
        return self._origin

    def look(self) -> None:
        """Ask the page table where managed pages are; what moved between two looks is compared with
        the records when the recording ends."""
        cuda_driver.synchronize()
        if why := self.looks.take(self.now_ns()):
            self.notes.append(why)

    def _open(self, tracer: str, devices: int, optional: Sequence[str]) -> FaultWriter:
        """The trace, with who made it on what."""
        meta = {
            "tool": provenance.tool(),
            "machine": provenance.machine(devices=devices, gpu=", ".join(cuda_driver.names())),
            "tracer": tracer,
            "origin_ns": self._origin,
        }
        return FaultWriter(self.path, meta | self._meta, optional=optional)

    def _finish(self, writer: FaultWriter, kind: type[BaseException] | None) -> None:
        """Complete the trace, keep it as ``.partial``, or leave nothing, after ``kind`` was raised or
        nothing was. Raises what kept records from being written."""
        try:
            if not self.rows or self.unwanted:
                writer.discard()
            elif kind or self._failure:
                writer.abandon()
            else:
                writer.close(self._closing_remarks())
        except OSError as error:
            self._failure = self._failure or error
        if kind is not None or self._failure is None:
            return
        if isinstance(self._failure, OSError):
            raise InputError(
                f"{self.path}: writing failed ({self._failure.strerror or self._failure}); what "
                "was recorded until then is in the .partial file beside it"
            )
        raise self._failure

    def _closing_remarks(self) -> dict[str, Any]:
        return {
            "delivered": self.delivered,
            "dropped": self.dropped,
            "ignored": self.ignored,
            "buffers": self.buffers,
            "handover_ns": self.busy_ns,
            "clock_drift_ns": self.clock.drift_ns,
            "looks": self.looks.compared(),
            "managed": [list(r) for r in self.looks.ranges],
            "notes": list(self.notes),
        } | self.remarks
