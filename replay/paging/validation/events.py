"""The driver's events of a stretch of work, drained while it runs."""

from __future__ import annotations

import threading

import numpy as np

from traces.capture.uvm_queue import ENTRY_BYTES, EventQueue

POLL_S = 0.002


class Events:
    """An event queue with a thread that empties it. ``start`` and ``stop`` around the work, then
    ``entries`` and ``lost``; ``close`` in any case."""

    def __init__(self) -> None:
        self._queue = EventQueue()
        self._parts: list[np.ndarray] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost: dict[str, int] = {}
        """By kind: events that found no room."""

    def start(self) -> None:
        """From now on."""
        self._queue.flush()
        self._queue.read()
        self._queue.enable()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Until now; the GPU has done what it was given."""
        self._queue.flush()
        self._queue.disable()
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        self._parts.append(self._queue.read())
        self.lost = self._queue.dropped()

    def entries(self) -> np.ndarray:
        """uint8 [n, ENTRY_BYTES]"""
        return np.concatenate([np.zeros((0, ENTRY_BYTES), np.uint8), *self._parts])

    def close(self) -> None:
        self._stop.set()
        self._queue.close()

    def _drain(self) -> None:
        while not self._stop.wait(POLL_S):
            found = self._queue.read()
            if len(found):
                self._parts.append(found)
