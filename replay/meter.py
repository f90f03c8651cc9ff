"""Times of a run, from events on the streams: where each step ended, and where its waiting went."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from replay.backend.base import BACK, COMPUTE, DEMAND, PREFETCH, Backend

COPY_STREAMS = (DEMAND, PREFETCH, BACK)


@dataclass
class Measured:
    """Durations in ns; S steps. The last three are None where only steps were timed."""

    step_ns: np.ndarray
    """int64 [S]: from the end of the step before (the start of the run for the first)."""
    issue_ns: np.ndarray
    """int64 [S]: the host's own time to decide and queue the step; waiting for the GPU excluded."""
    stall_ns: np.ndarray | None = None
    """int64 [S]: kernels waited for copies, summed over waves."""
    transfer_ns: np.ndarray | None = None
    """int64 [S]: the part of the stalls that the wave's own demand copies explain."""
    busy_ns: dict[int, int] | None = None
    """By copy stream: from the first to the last byte of each wave's copies, summed."""


@dataclass
class _Step:
    end: int
    stalls: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(open, ready, first demand, last demand) events of waves that waited."""
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    """(stream, start, end)"""


class Meter:
    """Records timing events while work is queued and reads them once a step is done.

    The host runs at most ``ahead`` steps ahead of the device; events come back to a pool when their
    step has been read, so their number does not grow with the run.
    """

    def __init__(self, backend: Backend, ahead: int, detail: bool):
        self.backend, self.ahead, self.detail = backend, ahead, detail
        self._free: list[int] = []
        self.events: list[int] = []
        """All there are; forget them when the run is over."""
        self._queued: deque[_Step] = deque()
        self._last = self._take()
        self._step = _Step(self._take())
        self._steps: list[int] = []
        self._stall: list[int] = []
        self._transfer: list[int] = []
        self._busy = dict.fromkeys(COPY_STREAMS, 0)
        self._spare: list[int] = []

    def _take(self) -> int:
        if not self._free:
            self._free = self.backend.events(64, timing=True)
            self.events += self._free
        return self._free.pop()

    def start(self) -> None:
        """The run starts now."""
        self.backend.record(self._last, COMPUTE)

    def mark(self, stream: int) -> int:
        """A timing event recorded on ``stream``, valid until its step has been read."""
        event = self._take()
        self.backend.record(event, stream)
        self._spare.append(event)
        return event

    def take(self) -> int:
        """A timing event for somebody else to record: `lent_span` gives it back."""
        return self._take()

    def lent_span(self, stream: int, start: int, end: int) -> None:
        """`span` of two events from `take`, which have been recorded by now."""
        self.span(stream, start, end)
        self._spare += (start, end)

    def stall(self, opened: int, ready: int, first: int, last: int) -> None:
        """Kernels waited from ``opened`` to ``ready``, demand copies ran from ``first`` to ``last``
        (-1: none)."""
        self._step.stalls.append((opened, ready, first, last))

    def span(self, stream: int, start: int, end: int) -> None:
        """A wave's copies on ``stream``."""
        self._step.spans.append((stream, start, end))

    def end_step(self) -> None:
        """The step has been queued; waits while the host is too far ahead."""
        self.backend.record(self._step.end, COMPUTE)
        self._queued.append(self._step)
        self._step.spans.extend((-1, e, e) for e in self._spare)
        self._spare = []
        self._step = _Step(self._take())
        while len(self._queued) > self.ahead:
            self._read()

    def _read(self) -> None:
        b, step = self.backend, self._queued.popleft()
        b.synchronise(step.end)
        self._steps.append(b.elapsed_ns(self._last, step.end))
        self._free.append(self._last)
        self._last = step.end
        stall = transfer = 0
        for opened, ready, first, last in step.stalls:
            wait = b.elapsed_ns(opened, ready)
            stall += wait
            if first >= 0:
                transfer += min(wait, b.elapsed_ns(first, last))
        self._stall.append(stall)
        self._transfer.append(transfer)
        for stream, start, end in step.spans:
            if stream < 0:
                self._free.append(start)
            else:
                # Prefetches and write-backs may outlive the step whose waves they belong to.
                if stream != DEMAND:
                    b.synchronise(end)
                self._busy[stream] += b.elapsed_ns(start, end)

    def finish(self, issue_ns: list[int]) -> Measured:
        """Read what is left, once all work is queued."""
        while self._queued:
            self._read()
        steps, issue = np.array(self._steps, np.int64), np.array(issue_ns, np.int64)
        if not self.detail:
            return Measured(steps, issue)
        return Measured(
            steps, issue, np.array(self._stall, np.int64), np.array(self._transfer, np.int64),
            dict(self._busy),
        )  # fmt: skip
