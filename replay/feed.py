"""Prefetches that are held back: the host hands them to the device piece by piece, between demands.

The device has no priorities among copies, so what it must not do yet it is not given: while demand
copies are queued nothing is fed, and at most `DEEP` pieces are under way, for which a demand copy
may have to wait. Prefetches that a wave waits for, or whose slot one of its copies takes, are
finished on the demand stream. `uvmsim.clocks` does the same with `Plan.piece_ns`.

A guess writes its slot after the opening of the wave that asked for it, as every prefetch does; two
guesses of one slot are fed in order, and what is finished on another stream waits for the pieces
under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from replay.backend.base import DEMAND, PREFETCH, Backend
from replay.meter import Meter
from replay.places import Places

DEEP = 2
"""Pieces under way at once, so that the link is not idle while the host looks up."""


@dataclass(eq=False)
class Guess:
    """A prefetch of which the first ``at`` bytes have been queued."""

    expert: int
    slot: int
    at: int = 0


class Feed:
    """The guesses of a run that are not queued yet. ``filled``: events by slot, recorded when a guess
    has been queued as a whole. ``piece``: bytes. ``wait_for_slot(expert, slot, stream)``: makes a
    stream wait for what else comes before the copy. ``meter``: told of each piece, None: of none."""

    def __init__(
        self, backend: Backend, places: Places, nbytes: list[int], filled: list[int], piece: int,
        wait_for_slot: Callable[[int, int, int], None], meter: Meter | None,
    ):  # fmt: skip
        self.backend, self.places, self.nbytes, self.filled = backend, places, nbytes, filled
        self.piece, self.wait_for_slot, self.meter = piece, wait_for_slot, meter
        self.waiting: list[Guess] = []
        self.beats = backend.events(DEEP)
        """Recorded after the latest pieces, in turn."""
        self.pieces = 0
        (self.quiet,) = backend.events(1)
        """The latest demand copies are done."""
        self._waited_ns = 0

    @property
    def events(self) -> list[int]:
        """All events that are its own."""
        return [*self.beats, self.quiet]

    def ask(self, expert: int, slot: int) -> None:
        """Take a guess; the prefetch stream waits for its wave's opening already."""
        self.waiting.append(Guess(expert, slot))

    def until(self, opened: int) -> None:
        """Feed until the device has come to an event, which the host waits for."""
        began = time.perf_counter_ns()
        while not self.backend.reached(opened):
            if self.waiting and self._free():
                self._piece()
        self._waited_ns += time.perf_counter_ns() - began

    def waited_ns(self) -> int:
        """Time spent in `until` since this was asked last."""
        waited, self._waited_ns = self._waited_ns, 0
        return waited

    def finish(self, slot: int, stream: int, told: bool = True) -> bool:
        """Queue what is left of a slot's guesses; False where that was nothing. ``told``: the meter is
        told of it."""
        mine = [g for g in self.waiting if g.slot == slot]
        if not mine:
            return False
        if stream != PREFETCH and self.pieces:
            self.backend.wait(stream, self._last_beat())
        for guess in mine:
            self._rest(guess, stream, told)
        return True

    def finish_all(self) -> None:
        """Queue all that is left, behind the pieces under way."""
        while self.waiting:
            self._rest(self.waiting[0], PREFETCH, True)

    def demanded(self) -> None:
        """Demand copies have been queued: nothing is fed before they are done."""
        self.backend.record(self.quiet, DEMAND)

    # ---- parts ----------------------------------------------------------------------------------

    def _free(self) -> bool:
        """Neither demand copies nor too many pieces are under way."""
        b, deep = self.backend, len(self.beats)
        full = self.pieces >= deep and not b.reached(self.beats[self.pieces % deep])
        return not full and b.reached(self.quiet)

    def _last_beat(self) -> int:
        return self.beats[(self.pieces - 1) % len(self.beats)]

    def _piece(self) -> None:
        guess = self.waiting[0]
        if not guess.at:
            self.wait_for_slot(guess.expert, guess.slot, PREFETCH)
        start = self.meter.mark(PREFETCH) if self.meter else -1
        self._queue(guess, PREFETCH)
        if self.meter:
            self.meter.span(PREFETCH, start, self.meter.mark(PREFETCH))

    def _rest(self, guess: Guess, stream: int, told: bool) -> None:
        self.wait_for_slot(guess.expert, guess.slot, stream)
        meter = self.meter if told else None
        start = meter.mark(stream) if meter else -1
        while guess.at < self.nbytes[guess.expert]:
            self._queue(guess, stream)
        if meter:
            meter.span(stream, start, meter.mark(stream))

    def _queue(self, guess: Guess, stream: int) -> None:
        """The next piece of a guess."""
        n = min(self.piece, self.nbytes[guess.expert] - guess.at)
        self.places.move_part(guess.expert, guess.slot, guess.at, n, stream)
        guess.at += n
        if stream == PREFETCH:
            self.pieces += 1
            self.backend.record(self._last_beat(), PREFETCH)
        if guess.at == self.nbytes[guess.expert]:
            self.waiting.remove(guess)
            self.backend.record(self.filled[guess.slot], stream)
