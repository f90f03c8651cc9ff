"""Reads and the copies that follow them: which are under way, which wait, as docs/tiers.md says.

Everything happens on the host's thread, in `pump`: it admits reads whose RAM slot nothing copies
from any more, demand before prefetch, as many as the disk's queue takes, and it queues copies whose
bytes have arrived. Threads of the `Reader` move bytes and touch nothing else.

Why nothing is overwritten too early: a read begins when the latest demand copy and the latest prefetch
out of its slot, of those that come before it in the plan, are queued and reached by the device. A copy
into a slot of device memory follows an earlier prefetch into it, which therefore is queued first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from replay.backend.base import DEMAND, PREFETCH, Backend
from replay.decide import Fetch
from replay.ram import FedSlots, RamSlots, raise_if_failed
from replay.reader import FileRead

PAUSE_S = 200e-6
"""How long the host sleeps where nothing but a read can come next."""


@dataclass(eq=False)
class Copying:
    """A copy to the device that was asked for."""

    fetch: Fetch
    read: Reading | None
    """What brings its bytes; None: they were there."""
    number: int
    """Copies are numbered as they were asked for."""
    queued: bool = False

    @property
    def there(self) -> bool:
        return self.read is None or self.read.done


@dataclass(eq=False)
class Reading:
    """A read that was asked for."""

    expert: int
    slot: int
    after: list[Copying] = field(default_factory=list)
    """Copies out of the slot that come before it."""
    under_way: FileRead | None = None
    done: bool = False


class Fetcher:
    """Of one run. ``filled``: events by slot of device memory, recorded after prefetches."""

    def __init__(
        self, backend: Backend, places: FedSlots, ram: RamSlots, filled: list[int], depth: int
    ):
        self.backend, self.places, self.ram, self.filled = backend, places, ram, filled
        self.depth = depth
        self.reads: dict[int, deque[Reading]] = {DEMAND: deque(), PREFETCH: deque()}
        self.copies: dict[int, deque[Copying]] = {DEMAND: deque(), PREFETCH: deque()}
        self.flying: list[Reading] = []
        n = len(ram.ptrs)
        self.left = {s: backend.events(n) for s in (DEMAND, PREFETCH)}
        """By stream and RAM slot: the latest copy out of it."""
        self._last: dict[tuple[int, int], Copying] = {}
        self._brings: dict[int, Reading] = {}
        """By RAM slot: the latest read into it."""
        self._asked = self._waited_ns = 0
        self._fresh = False
        """Copies were asked for, or bytes have come, since copies were queued last."""
        self.disk_ns = 0
        """The host waited for reads that a wave needed."""
        self.done = self.bytes = 0
        """Reads, and bytes of experts, that arrived."""

    @property
    def events(self) -> list[int]:
        """All events that are its own."""
        return [e for events in self.left.values() for e in events]

    @property
    def busy(self) -> bool:
        """Whether anything is asked for that is not queued yet."""
        return any(self.copies.values())

    def ask(self, fetches: list[Fetch]) -> None:
        """A wave's copies, in the plan's order, once it has opened."""
        self._fresh |= bool(fetches)
        for fetch in fetches:
            slot = fetch.ram_slot
            if fetch.reads:
                keys = [(slot, s) for s in (DEMAND, PREFETCH)]
                reading = Reading(
                    fetch.expert, slot, [self._last.pop(k) for k in keys if k in self._last]
                )
                self._brings[slot] = reading
                self.reads[fetch.stream].append(reading)
            copying = Copying(fetch, self._brings.get(slot), self._asked)
            self._asked += 1
            self._last[slot, fetch.stream] = copying
            self.copies[fetch.stream].append(copying)

    def pump(self) -> bool:
        """Do what can be done now; whether that was anything."""
        moved = self._land()
        self._fresh |= moved
        if self._fresh:
            # A demand copy may have waited for the prefetch that is queued after it.
            self._fresh = self._queue(DEMAND) | self._queue(PREFETCH)
            moved |= self._fresh
        return self._admit() or moved

    def until(self, event: int) -> None:
        """Go on until the device has come to an event."""
        began = time.perf_counter_ns()
        while not self.backend.reached(event):
            if not self.pump():
                time.sleep(0)  # the reader's threads need the interpreter, too
        self._waited_ns += time.perf_counter_ns() - began

    def waited_ns(self) -> int:
        """Time that the host waited since this was asked last."""
        waited, self._waited_ns = self._waited_ns, 0
        return waited

    def demanded(self) -> None:
        """Go on until all demand copies are queued."""
        self._while(lambda: self.copies[DEMAND])

    def queued(self, slot: int) -> None:
        """Go on until no copy into a slot of device memory is held back."""
        self._while(lambda: any(c.fetch.slot == slot for c in self.copies[PREFETCH]))

    def finish(self) -> None:
        """Queue all that is left."""
        while self.busy:
            self._rest()

    def _while(self, held: Callable[[], object]) -> None:
        """Go on while something is held back, and count the time where that is for the disk."""
        began = time.perf_counter_ns()
        self.pump()
        if held():
            while held():
                self._rest()
            self.disk_ns += time.perf_counter_ns() - began
        self._waited_ns += time.perf_counter_ns() - began

    # ---- parts ----------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Something was done, or a little time has passed."""
        if not self.pump():
            self.ram.reader.wait(seconds=PAUSE_S)

    def _land(self) -> bool:
        """Take in reads that are done."""
        landed = [r for r in self.flying if r.under_way is not None and r.under_way.done]
        for reading in landed:
            assert reading.under_way is not None
            raise_if_failed(reading.under_way)
            reading.done = True
            self.flying.remove(reading)
            self.done += 1
            self.bytes += self.ram.bank.nbytes[reading.expert]
        return bool(landed)

    def _queue(self, stream: int) -> bool:
        """Queue copies whose bytes are there; one that must follow a prefetch that is held back holds
        up those behind it."""
        moved = False
        for copying in list(self.copies[stream]):
            if not copying.there:
                continue
            if self._in_the_way(copying):
                break
            self.copies[stream].remove(copying)
            self._copy(copying)
            moved = True
        return moved

    def _in_the_way(self, copying: Copying) -> bool:
        """An earlier prefetch into the same slot of device memory is held back."""
        for other in self.copies[PREFETCH]:
            if other.fetch.slot == copying.fetch.slot and other.number < copying.number:
                return True
        return False

    def _copy(self, copying: Copying) -> None:
        b, f = self.backend, copying.fetch
        if f.stream == DEMAND:
            b.wait(DEMAND, self.filled[f.slot])
        self.places.move_from(self.ram.ptrs[f.ram_slot], f.expert, f.slot, f.stream)
        if f.stream == PREFETCH:
            b.record(self.filled[f.slot], PREFETCH)
        b.record(self.left[f.stream][f.ram_slot], f.stream)
        copying.queued = True

    def _admit(self) -> bool:
        moved = False
        while len(self.flying) < self.depth:
            queue = next((q for q in self.reads.values() if q and self._free(q[0])), None)
            if queue is None:
                break
            reading = queue.popleft()
            reading.under_way = self.ram.read(reading.expert, reading.slot)
            self.flying.append(reading)
            moved = True
        return moved

    def _free(self, reading: Reading) -> bool:
        """Nothing copies from its slot any more."""
        return all(
            c.queued and self.backend.reached(self.left[c.fetch.stream][c.fetch.ram_slot])
            for c in reading.after
        )
