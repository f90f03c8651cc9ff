"""Issues a run's waves to a backend: copies, waits, kernels, in the order of docs/model-of-time.md.

Why nothing is overwritten too early or read too early:

- A wave's copies wait for its *opening*, an event on the compute stream after the wave's dense work
  (the router has chosen). Kernels run in order, so every earlier reader of any slot is done by then,
  and no expert of the wave itself is ever a victim.
- A copy into a slot also waits for the write-back of what was in it, and for a prefetch into it that
  nobody waited for. A copy out of a slot waits for such a prefetch as well.
- An expert that is copied in again waits for its own write-back, if that still runs.
- Where the pool is emptied, prefetches on their way are forgotten but still read host memory: later
  write-backs wait for them.
- Kernels wait for their wave's demand copies, and for prefetched experts read for the first time.
- What the CPU computes of a wave it computes once the wave has opened, while copies run; the host
  waits for it, then queues the results' copy on the compute stream. Every earlier copy from that buffer
  is done by then, since the opening comes after it on the same stream. An expert that is being written
  back is waited for first.
- Where such a run copies from pageable memory, a thread of its own queues prefetches
  (`replay.carrier`); a slot's copy is on the stream before anything waits for its event or overwrites
  the slot.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from replay.backend.base import (
    BACK,
    COMPUTE,
    DEMAND,
    MAX_TASKS,
    PREFETCH,
    X_ROWS,
    Backend,
    Tasks,
)
from replay.bank import Bank
from replay.carrier import Carrier
from replay.decide import Move, Wave, Waves
from replay.dense_reads import DenseReads
from replay.feed import Feed
from replay.meter import Measured, Meter
from replay.on_cpu import OnCpu
from replay.places import Places
from uvmsim.runs.job import Job

ROWS = 4096
"""Token rows of one expert call, unless one expert alone has more."""


@dataclass(frozen=True)
class Pace:
    """How the host issues."""

    ahead: int = 2
    """Steps the host may be ahead of the device."""
    detail: bool = True
    """Time stalls and copies, not only steps: two more events a wave that copies."""


def most_rows(job: Job) -> int:
    """Token rows that the buffers of `Backend.prepare` must hold."""
    w = job.workload
    return max(X_ROWS, int(w.counts.max(initial=1)), min(ROWS, int(w.counts.sum())))


class Executor:
    """One run: where experts lie is `Places`' business, what happens next `Waves`'."""

    def __init__(
        self, backend: Backend, job: Job, bank: Bank, places: Places, decisions: Waves,
        dense: DenseReads, pace: Pace, on_cpu: OnCpu | None = None,
    ):  # fmt: skip
        self.backend, self.job, self.bank = backend, job, bank
        self.places, self.decisions, self.dense, self.pace = places, decisions, dense, pace
        w = job.workload
        self.layers = w.event_layer.tolist()
        self.steps = w.event_step.tolist()
        self.counts = w.counts
        self.single = bool((w.counts == 1).all())
        self.rows = most_rows(job)
        self.tasks = Tasks.empty()
        self.tasks.tokens[:] = 1
        self.tasks.first_row[:] = np.arange(MAX_TASKS)
        self.opened, self.arrived = backend.events(2)
        n = decisions.slots + decisions.beside
        self.filled = backend.events(n)
        """By slot: its latest prefetch."""
        self.emptied = backend.events(n) if places.writes_back else []
        """By slot: its latest write-back."""
        self.filling = bytearray(n)
        """By slot: filled by a prefetch that no kernel has waited for."""
        self.written = backend.events(len(bank.nbytes)) if places.writes_back else []
        """By expert: its latest write-back. An event a slot alone would not do: an expert may come
        back to another slot while that event already stands for the next victim's."""
        self.feed: Feed | None = None
        """Where prefetches move in pieces: those that are held back."""
        self.carrier: Carrier | None = None
        """Where the host would stand still while a prefetch is queued: who does it."""
        self.on_cpu = on_cpu
        self.left = bytearray(len(bank.nbytes))
        """By expert: was written back before."""
        self.hash_at = np.arange(len(w.ids))
        """int64 [A]: where the hash of an access is kept; those of a wave that the GPU computes go
        first."""
        self.bytes = [0, 0, 0, 0]
        """By stream: bytes queued."""
        self.queued_dense: int | None = None
        """An event to record once the dense work before an event's experts is queued."""

    def run(self) -> Measured:
        """Issue everything and wait for it."""
        try:
            return self._run()
        finally:
            if self.carrier:
                self.carrier.close()

    def _run(self) -> Measured:
        b, meter = self.backend, self.begin()
        issue: list[int] = []
        w = self.job.workload
        last_event = (
            np.searchsorted(w.event_step, np.arange(w.n_steps), side="right") - 1
        ).tolist()
        ends = w.event_lo[1:].tolist()
        meter.start()
        step, began = 0, time.perf_counter_ns()
        for waves in self.decisions.steps():
            for wave in waves:
                self.wave(wave, meter)
                done = step < w.n_steps and wave.event == last_event[step]
                if done and wave.hi == ends[wave.event]:
                    self.dense.end(step)
                    self._carried(meter, step == w.n_steps - 1)
                    waited = self.waited_ns()
                    issue.append(time.perf_counter_ns() - began - waited)
                    meter.end_step()
                    step, began = step + 1, time.perf_counter_ns()
        more = self.finish()
        b.synchronise()
        return self.end(meter, issue, more)

    def begin(self) -> Meter:
        """All that a run needs before its first wave."""
        b, meter = self.backend, Meter(self.backend, self.pace.ahead, self.pace.detail)
        if self.job.prefetch_pieces and self.places.by_slot:
            told = meter if self.pace.detail else None
            self.feed = Feed(
                b, self.places, self.bank.nbytes, self.filled, self.job.prefetch_pieces,
                self._wait_for_slot, told,
            )  # fmt: skip
        elif self.on_cpu and self.places.by_slot and self.bank.kind == "pageable":
            self.carrier = Carrier(b, self.places, self.filled)
        self._warm_up()
        b.clear_hashes()
        b.synchronise()
        return meter

    def end(self, meter: Meter, issue: list[int], more: Sequence[int] = ()) -> Measured:
        """What was measured, once all work is done; ``issue``: the host's own ns of each step;
        ``more``: events to forget."""
        measured = meter.finish(issue)
        mine = [self.opened, self.arrived, *self.filled, *self.emptied, *self.written]
        self.backend.forget([*meter.events, *mine, *more])
        return measured

    def _carried(self, meter: Meter, last: bool) -> None:
        """Tell the meter of copies that the carrier has queued; after the ``last`` step, of all."""
        if self.carrier is None:
            return
        if last:
            self.carrier.join_all()
        for start, end in self.carrier.spans():
            meter.lent_span(PREFETCH, start, end)

    def finish(self) -> list[int]:
        """Queue what is held back; returns the events that this needed."""
        if not self.feed:
            return []
        self.feed.finish_all()
        return self.feed.events

    def waited_ns(self) -> int:
        """Time that the host waited for the device since this was asked last."""
        waited = self.feed.waited_ns() if self.feed else 0
        return waited + (self.carrier.waited_ns() if self.carrier else 0)

    def _warm_up(self) -> None:
        """Launch every kernel the run will need once, so that none is loaded inside it. What the
        slots hold by now does not matter; hashes are cleared after it."""
        if self.job.workload.n_steps:
            self.dense.layer(0, 0)
        if self.places.moves_out and not self.places.by_slot:
            return  # managed memory: a kernel here would page experts in
        t = self.tasks
        t.weights[0], t.x_first[0] = self.places.table[0], 0
        for most in (1, 2, 4, 8):
            if most > 1 and self.single:
                break
            t.tokens[0] = most
            self.backend.experts(self.bank.layouts[0], t, 1, 0, most)
        t.tokens[0] = 1

    def wave(self, wave: Wave, meter: Meter) -> None:
        """Queue one wave."""
        b, places, detail = self.backend, self.places, self.pace.detail
        layer = self.layers[wave.event]
        if wave.first:
            self.dense.layer(layer, self.steps[wave.event])
            if self.queued_dense is not None:
                b.record(self.queued_dense, COMPUTE)
        feed = self.feed
        if wave.emptied and feed:
            feed.finish_all()
        if wave.emptied and places.writes_back:
            if self.carrier:
                self.carrier.join_all()
            b.record(self.arrived, PREFETCH)
            b.wait(BACK, self.arrived)
        leaving = wave.leaving if places.moves_out else ()
        opened = -1
        held = feed is not None and bool(feed.waiting)
        cpu = wave.away is not None
        if wave.demand or wave.prefetch or leaving or cpu or (detail and wave.arriving) or held:
            if detail:
                opened = meter.mark(COMPUTE)
            else:
                opened = self.opened
                b.record(opened, COMPUTE)
        if feed and held:
            feed.until(opened)
        if leaving:
            self._move_out(leaving, opened, meter)
        first = last = -1
        if wave.demand:
            first, last = self._fill(wave.demand, opened, DEMAND, meter)
            b.wait(COMPUTE, last)
        if feed:
            if held and wave.arriving:
                b.wait(DEMAND, opened)
            awaited = [slot for slot in wave.arriving if feed.finish(slot, DEMAND)]
            if wave.demand or awaited:
                feed.demanded()
        if wave.prefetch:
            self._fill(wave.prefetch, opened, PREFETCH, meter)
        for slot in wave.arriving:
            self._wait_for_fill(slot, COMPUTE)
            self.filling[slot] = 0
        if cpu:
            self._compute_away(wave, layer, opened)
        if detail and (wave.demand or wave.arriving or cpu):
            meter.stall(opened, meter.mark(COMPUTE), first, last)
        if wave.hi > wave.lo:
            self._compute(wave, layer)

    def _move_out(self, leaving: list[Move], opened: int, meter: Meter) -> None:
        b = self.backend
        b.wait(BACK, opened)
        for _, slot in leaving:
            if self.feed:
                self.feed.finish(slot, PREFETCH)
            if self.filling[slot]:
                self._wait_for_fill(slot, BACK)
        start = meter.mark(BACK) if self.pace.detail else -1
        for e, slot in leaving:
            self.places.move_out(e, slot)
            self.bytes[BACK] += self.bank.nbytes[e]
            if self.emptied:
                b.record(self.emptied[slot], BACK)
                b.record(self.written[e], BACK)
                self.left[e] = 1
        if self.pace.detail:
            meter.span(BACK, start, meter.mark(BACK))

    def _fill(self, moves: list[Move], opened: int, stream: int, meter: Meter) -> tuple[int, int]:
        """Queue copies into slots; returns the events before the first and after the last."""
        b, detail, feed = self.backend, self.pace.detail, self.feed
        nbytes = self.bank.nbytes
        b.wait(stream, opened)
        if self.carrier and stream == PREFETCH:
            return self._have_carried(self.carrier, moves, meter)
        start = meter.mark(stream) if detail else -1
        for e, slot in moves:
            self.bytes[stream] += nbytes[e]
            if feed and stream == PREFETCH:
                feed.ask(e, slot)
                self.filling[slot] = True
                continue
            if feed:
                feed.finish(slot, stream, told=False)
            self._wait_for_slot(e, slot, stream)
            if stream == DEMAND and self.filling[slot]:
                self._wait_for_fill(slot, stream)
            self.places.move_in(e, slot, stream)
            self.filling[slot] = stream == PREFETCH
            if stream == PREFETCH:
                b.record(self.filled[slot], PREFETCH)
        if detail:
            end = meter.mark(stream)
            meter.span(stream, start, end)
        else:
            end = self.arrived
            if stream == DEMAND:
                b.record(end, DEMAND)
        return start, end

    def _have_carried(self, carrier: Carrier, moves: list[Move], meter: Meter) -> tuple[int, int]:
        """`_fill` by the carrier, on the prefetch stream."""
        for e, slot in moves:
            self.bytes[PREFETCH] += self.bank.nbytes[e]
            self._wait_for_slot(e, slot, PREFETCH)
            self.filling[slot] = True
        start, end = (meter.take(), meter.take()) if self.pace.detail else (-1, -1)
        carrier.ask(moves, start, end)
        return start, end

    def _wait_for_fill(self, slot: int, stream: int) -> None:
        """A slot's latest prefetch comes before what is queued next on a stream."""
        if self.carrier:
            self.carrier.join(slot)
        self.backend.wait(stream, self.filled[slot])

    def _wait_for_slot(self, e: int, slot: int, stream: int) -> None:
        """The slot's write-back and the expert's own come before a copy of it into the slot."""
        if self.emptied:
            self.backend.wait(stream, self.emptied[slot])
            self.backend.wait(stream, self.written[e])

    def _compute_away(self, wave: Wave, layer: int, opened: int) -> None:
        """The CPU's experts of a wave, done when this returns but for their results' copy."""
        assert self.on_cpu is not None and wave.away is not None
        b = self.backend
        accesses = wave.lo + np.flatnonzero(wave.away)
        b.synchronise(opened)
        for e in self.job.workload.ids[accesses].tolist() if self.written else ():
            if self.left[e]:
                b.synchronise(self.written[e])
        self.on_cpu.compute(accesses, layer, wave.event)
        order = np.argsort(wave.away, kind="stable")
        self.hash_at[wave.lo + order] = wave.lo + np.arange(len(order))

    def _compute(self, wave: Wave, layer: int) -> None:
        """Expert calls of a wave, as many at once as the task table and the buffers hold."""
        b, t, layout = self.backend, self.tasks, self.bank.layouts[layer]
        slots = wave.slots
        ids, counts = (x[wave.lo : wave.hi] for x in (self.job.workload.ids, self.counts))
        if wave.away is not None:
            here = ~wave.away
            slots, ids, counts = slots[here], ids[here], counts[here]
        n = len(ids)
        if n == 0:
            return
        where = self.places.table[slots if self.places.by_slot else ids]
        t.x_first[: min(n, MAX_TASKS)] = wave.event % X_ROWS
        if self.single:
            # One row each, at its number: so the table came into the world.
            for at in range(0, n, MAX_TASKS):
                k = min(MAX_TASKS, n - at)
                t.weights[:k] = where[at : at + k]
                b.experts(layout, t, k, wave.lo + at, 1)
            return
        for at, k in groups(counts.tolist(), self.rows):
            t.weights[:k] = where[at : at + k]
            t.tokens[:k] = counts[at : at + k]
            t.first_row[0] = 0
            np.cumsum(counts[at : at + k - 1], out=t.first_row[1:k])
            b.experts(layout, t, k, wave.lo + at)


def groups(counts: list[int], rows: int) -> list[tuple[int, int]]:
    """(first, how many) of runs of at most `MAX_TASKS` experts with at most ``rows`` tokens."""
    out, at, total = [], 0, 0
    for i, c in enumerate(counts):
        if i > at and (total + c > rows or i - at == MAX_TASKS):
            out.append((at, i - at))
            at, total = i, 0
        total += c
    out.append((at, len(counts) - at))
    return out
