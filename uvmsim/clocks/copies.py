"""A DMA copy engine as a SimPy process: demand before prefetch, and a piece is never preempted."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

import simpy
from simpy.events import Event

LAST = 2
"""Priority of a choice: after everything else that happens at the same nanosecond, so that a demand
copy queued now is seen by an engine that falls idle now."""


def at_last(env: simpy.Environment, event: Event) -> None:
    """Let ``event`` happen now, after everything else that does."""
    # SimPy's own calls have priority 0 and 1.
    event._ok, event._value = True, None
    env.schedule(event, priority=LAST)  # type: ignore[arg-type]


class Copy:
    """One transfer; ``done`` happens when its last byte has arrived."""

    __slots__ = ("after", "done", "left", "number", "started")

    def __init__(self, env: simpy.Environment, number: int, duration: int, after: Copy | None):
        self.number, self.after = number, after
        self.left, self.started = duration, False
        self.done = Event(env)

    @property
    def ready(self) -> bool:
        """The copy it must follow (through the same slot) is done."""
        return self.after is None or self.after.done.triggered


class CopyEngine:
    """One direction of the link.

    Each queue is first in, first out; a queue's head that must wait for another copy holds up its
    own queue only. The demand queue goes first, then prefetches that somebody waits for. ``piece``:
    ns of a piece of the other prefetches, 0: they move as a whole.
    """

    def __init__(self, env: simpy.Environment, start: list[int], done: list[int], piece: int = 0):
        self.env, self.start, self.done, self.piece = env, start, done, piece
        self.demand: deque[Copy] = deque()
        self.awaited: deque[Copy] = deque()
        self.prefetch: deque[Copy] = deque()
        self._wake = Event(env)
        env.process(self._run())

    def queue(self, copy: Copy, urgent: bool) -> None:
        """Queue a copy now."""
        (self.demand if urgent else self.prefetch).append(copy)
        if copy.after is not None and not copy.ready:
            copy.after.done.callbacks.append(lambda _: self._call())
        self._call()

    def want(self, copy: Copy) -> None:
        """A prefetch somebody waits for now; one that is awaited or done already stays as it is."""
        if copy in self.prefetch:
            self.prefetch.remove(copy)
            self.awaited.append(copy)
            self._call()

    def _call(self) -> None:
        if not self._wake.triggered:
            at_last(self.env, self._wake)

    def _run(self) -> Generator[Event, None, None]:
        while True:
            yield self._wake
            self._wake = Event(self.env)
            queue = self._next()
            if queue is None:
                continue
            copy = queue[0]
            if not copy.started:
                copy.started, self.start[copy.number] = True, int(self.env.now)
            whole = not self.piece or queue is not self.prefetch
            part = copy.left if whole else min(self.piece, copy.left)
            copy.left -= part
            if not copy.left:
                queue.popleft()
            yield self.env.timeout(part)
            if not copy.left:
                self.done[copy.number] = int(self.env.now)
                copy.done.succeed()
            # A wake that came while the copy moved is spent: choose anew, last in this instant.
            self._wake = Event(self.env)
            self._call()

    def _next(self) -> deque[Copy] | None:
        """The queue whose head moves next."""
        for queue in (self.demand, self.awaited, self.prefetch):
            if queue and queue[0].ready:
                return queue
        return None
