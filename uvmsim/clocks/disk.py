"""A disk as a SimPy process: demand reads before prefetch reads, some in flight, bytes in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

import simpy
from simpy.events import Event

from uvmsim.clocks.copies import Copy, CopyEngine, at_last
from uvmsim.runs.reads import Reads


class Read:
    """One read; ``done`` happens when its last byte is in host memory."""

    __slots__ = ("after", "done", "duration", "number")

    def __init__(self, env: simpy.Environment, number: int, duration: int, after: list[Copy]):
        self.number, self.duration, self.after = number, duration, after
        self.done = Event(env)

    @property
    def ready(self) -> bool:
        """The slot that it overwrites is not copied from any more."""
        return all(copy.done.triggered for copy in self.after)


class Disk:
    """``depth`` reads in flight, whose latencies run side by side; their bytes come one read after the
    other, in the order in which they were taken from the queues."""

    def __init__(
        self, env: simpy.Environment, start: list[int], done: list[int], latency: int, depth: int
    ):
        self.env, self.start, self.done = env, start, done
        self.latency, self.depth = latency, depth
        self.demand: deque[Read] = deque()
        self.prefetch: deque[Read] = deque()
        self._flying = 0
        self._channel = 0
        self._wake = Event(env)
        env.process(self._run())

    def queue(self, read: Read, urgent: bool) -> None:
        """Queue a read now."""
        (self.demand if urgent else self.prefetch).append(read)
        for copy in read.after:
            if not copy.done.triggered:
                copy.done.callbacks.append(lambda _: self._call())
        self._call()

    def _call(self) -> None:
        if not self._wake.triggered:
            at_last(self.env, self._wake)

    def _run(self) -> Generator[Event, None, None]:
        while True:
            yield self._wake
            self._wake = Event(self.env)
            while self._flying < self.depth:
                queue = next((q for q in (self.demand, self.prefetch) if q and q[0].ready), None)
                if queue is None:
                    break
                self._take(queue.popleft())

    def _take(self, read: Read) -> None:
        now = int(self.env.now)
        self._flying += 1
        self.start[read.number] = now
        self._channel = max(self._channel, now + self.latency) + read.duration
        self.env.process(self._land(read, self._channel - now))

    def _land(self, read: Read, after: int) -> Generator[Event, None, None]:
        yield self.env.timeout(after)
        self._flying -= 1
        self.done[read.number] = int(self.env.now)
        read.done.succeed()
        self._call()


class FedCopy(Copy):
    """A copy whose bytes a read brings."""

    __slots__ = ("read",)

    def __init__(
        self, env: simpy.Environment, number: int, duration: int, after: Copy | None,
        read: Read | None,
    ):  # fmt: skip
        super().__init__(env, number, duration, after)
        self.read = read

    @property
    def there(self) -> bool:
        """Its bytes are in host memory."""
        return self.read is None or self.read.done.triggered


class FedEngine(CopyEngine):
    """A copy engine that passes over copies whose bytes are not in host memory yet."""

    def queue(self, copy: Copy, urgent: bool) -> None:
        assert isinstance(copy, FedCopy)
        if not copy.there and copy.read is not None:
            copy.read.done.callbacks.append(lambda _: self._call())
        super().queue(copy, urgent)

    def _next(self) -> deque[Copy] | None:
        for queue in (self.demand, self.prefetch):
            for copy in queue:
                if isinstance(copy, FedCopy) and copy.there:
                    if not copy.ready:
                        break
                    queue.remove(copy)
                    queue.appendleft(copy)
                    return queue
        return None


class Feeder:
    """What a plan's copies need of a disk: reads are queued with the copies that ask for them."""

    def __init__(self, env: simpy.Environment, reads: Reads):
        self.env, self.reads = env, reads
        self.start, self.done = [0] * len(reads.ns), [0] * len(reads.ns)
        self.disk = Disk(env, self.start, self.done, reads.latency_ns, reads.depth)
        self.copies: dict[int, Copy] = {}
        self.asked: list[Read] = []

    def copy(self, number: int, duration: int, after: Copy | None, urgent: bool) -> FedCopy:
        """A copy, whose read is queued now where it is the one that asks for it."""
        r, following = self.reads, len(self.asked)
        if following < len(r.copy) and r.copy[following] == number:
            behind = [self.copies[c] for c in r.after[following].tolist() if c >= 0]
            read = Read(self.env, following, int(r.ns[following]), behind)
            self.asked.append(read)
            self.disk.queue(read, urgent)
        brings = int(r.of_copy[number])
        made = FedCopy(
            self.env, number, duration, after, self.asked[brings] if brings >= 0 else None
        )
        self.copies[number] = made
        return made
