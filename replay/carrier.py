"""Copies behind from pageable memory, queued by a thread of their own.

A ``cudaMemcpyAsync`` from pageable memory returns when the driver has staged the bytes: some 3 ms for
an expert of 13 MB at 4.4 GB/s, in which the calling thread does nothing else. In a run whose misses the
CPU computes that thread has them to compute; so a second one makes these calls, one after the other.

What is asked for is on its way to the stream but not yet there. Whoever waits for a slot's event, or
touches the slot, calls `join` first: an event that is not recorded yet is not waited for. What the
other thread makes the prefetch stream wait for meanwhile also holds up copies that were asked for
earlier; since that never is anything that waits for a copy not yet queued, nothing waits in a circle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue

from replay.backend.base import PREFETCH, Backend
from replay.places import Places

NONE = -1


class Carrier:
    """Fills slots on the prefetch stream in the order asked for. ``filled``: events by slot, recorded
    when its copy has been queued. `close` it."""

    def __init__(self, backend: Backend, places: Places, filled: list[int]):
        self.backend, self.places, self.filled = backend, places, filled
        self._tasks: SimpleQueue[tuple[int, int, int, int] | None] = SimpleQueue()
        self._asked = self._done = 0
        self._latest: dict[int, int] = {}
        """By slot: number of its latest copy, from 1."""
        self._spans: list[tuple[int, int, int]] = []
        """(number of the last copy, start, end) of what was asked for together and not told of."""
        self._moved = threading.Condition()
        self._error: BaseException | None = None
        self._stopped = False
        self._waited_ns = 0
        self._thread = threading.Thread(target=self._work, name="copies behind", daemon=True)
        self._thread.start()

    def ask(self, moves: Sequence[tuple[int, int]], start: int = NONE, end: int = NONE) -> None:
        """Queue copies of (expert, slot), one at least; the stream waits for all that comes before
        them already. ``start`` and ``end``: events to record around them, -1: none. Raises what an
        earlier copy raised, as the others do."""
        self._until(0)
        for i, (expert, slot) in enumerate(moves):
            self._asked += 1
            self._latest[slot] = self._asked
            last = i == len(moves) - 1
            self._tasks.put((expert, slot, NONE if i else start, end if last else NONE))
        if start != NONE:
            self._spans.append((self._asked, start, end))

    def join(self, slot: int) -> None:
        """Return once the slot's latest copy is on the stream and its event recorded."""
        self._until(self._latest.get(slot, 0))

    def join_all(self) -> None:
        """Return once all copies are on the stream."""
        self._until(self._asked)

    def spans(self) -> list[tuple[int, int]]:
        """Starts and ends that have been recorded and were not told of before."""
        n = sum(number <= self._done for number, _, _ in self._spans)
        told, self._spans = self._spans[:n], self._spans[n:]
        return [(start, end) for _, start, end in told]

    def waited_ns(self) -> int:
        """Time that `join` took since this was asked last."""
        waited, self._waited_ns = self._waited_ns, 0
        return waited

    def close(self) -> None:
        """End the thread; what it has not begun is left out. Safe to call twice."""
        self._stopped = True
        self._tasks.put(None)
        self._thread.join()

    def _until(self, number: int) -> None:
        if self._done < number and self._error is None:
            began = time.perf_counter_ns()
            with self._moved:
                self._moved.wait_for(lambda: self._done >= number or self._error is not None)
            self._waited_ns += time.perf_counter_ns() - began
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            self.backend.enter_thread()
            while (task := self._tasks.get()) is not None and not self._stopped:
                self._copy(*task)
                with self._moved:
                    self._done += 1
                    self._moved.notify()
        except BaseException as err:  # an interrupt too: raised again where it is waited for
            with self._moved:
                self._error = err
                self._moved.notify()

    def _copy(self, expert: int, slot: int, start: int, end: int) -> None:
        b = self.backend
        if start != NONE:
            b.record(start, PREFETCH)
        self.places.move_in(expert, slot, PREFETCH)
        b.record(self.filled[slot], PREFETCH)
        if end != NONE:
            b.record(end, PREFETCH)
