"""No slot and no host byte is touched by two streams at once: checked with vector clocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import cases, generate, settings_for

from replay.backend.base import COMPUTE, DEMAND, PREFETCH
from replay.backend.host import HostBackend
from replay.feed import Feed
from replay.results import verified
from replay.session import How, Session
from uvmsim.mechanisms import mechanism
from uvmsim.runs.plan import PREFETCH as KIND


class Race(AssertionError):
    pass


class Checked(HostBackend):
    """Runs as the host backend does, and proves from streams and events alone that every two
    accesses of a byte, one of them a write, are ordered."""

    def __init__(self, deaf: int | None = None, shuffle: int | None = None):
        super().__init__(shuffle)
        self.clock = np.zeros((4, 4), np.int64)
        self.host_clock = np.zeros(4, np.int64)
        self.notes: dict[int, np.ndarray] = {}
        self.seen: list[tuple[int, int, bool, int, int]] = []
        self.deaf, self.waits = deaf, 0

    def record(self, event, stream):
        super().record(event, stream)
        self.notes[event] = self.clock[stream].copy()

    def wait(self, stream, event):
        super().wait(stream, event)
        self.waits += 1
        if self.waits - 1 != self.deaf and event in self.notes:
            np.maximum(self.clock[stream], self.notes[event], out=self.clock[stream])

    def reached(self, event):
        done = super().reached(event)
        if done and event in self.notes:
            np.maximum(self.host_clock, self.notes[event], out=self.host_clock)
        return done

    def synchronise(self, event=None):
        super().synchronise(event)
        note = self.clock.max(axis=0) if event is None else self.notes[event]
        np.maximum(self.host_clock, note, out=self.host_clock)
        if event is None:
            self.seen.clear()

    def touch(self, stream, *ranges):
        now = self.clock[stream]
        np.maximum(now, self.host_clock, out=now)
        now[stream] += 1
        for lo, n, write in ranges:
            for lo2, hi2, write2, other, tick in self.seen:
                clash = (write or write2) and lo < hi2 and lo2 < lo + n
                if clash and now[other] < tick:
                    raise Race(f"streams {stream} and {other} at address {lo - lo2} of a range")
        self.seen += [(lo, lo + n, write, stream, int(now[stream])) for lo, n, write in ranges]

    def copy_in(self, dst, src, nbytes, stream):
        super().copy_in(dst, src, nbytes, stream)
        self.touch(stream, (dst, nbytes, True), (src, nbytes, False))

    def copy_out(self, dst, src, nbytes, stream):
        super().copy_out(dst, src, nbytes, stream)
        self.touch(stream, (dst, nbytes, True), (src, nbytes, False))

    def migrate(self, ptr, nbytes, to_device, stream):
        super().migrate(ptr, nbytes, to_device, stream)
        self.touch(stream, (ptr, nbytes, False))

    def experts(self, layout, tasks, n, first_access, most=0):
        super().experts(layout, tasks, n, first_access, most)
        self.touch(COMPUTE, *[(int(p), layout.nbytes, False) for p in tasks.weights[:n]])


POLICIES = ("lru", "mru", "lfu+next-layer", "lru+previous-token", "random")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_copies_and_kernels_never_race(data):
    case = data.draw(cases(max_decode=8))
    how = data.draw(settings_for(case))
    policy = data.draw(st.sampled_from(POLICIES))
    pace = How(dtype="fp32", detail=data.draw(st.booleans()), split=data.draw(st.integers(1, 2)))
    how["prefetch_pieces"] = data.draw(st.sampled_from((0, 100, 1000)))
    with Session(Checked(shuffle=data.draw(st.sampled_from((None, 3)))), pace) as session:
        run = session.run(case.job(policy, profile=case.workload(), **how))
    assert verified(run)


@pytest.mark.parametrize("mode", ["stream", "resident", "uvm"])
@pytest.mark.parametrize("write_back", [False, True])
def test_other_modes_never_race(mode, write_back):
    case = generate(3, decode=6)
    job = case.job("lru" if mode == "uvm" else None, slots=5, write_back=write_back)
    with Session(Checked(), How(dtype="fp32")) as session:
        assert verified(session.run(job, mode))


def test_the_checker_notices_a_wait_that_is_left_out():
    """Each wait of a busy run is left out in turn: nearly all of them are needed."""
    case = generate(9, layers=2, experts=6, decode=5)

    def run(deaf):
        with Session(backend := Checked(deaf), How(dtype="fp32", detail=False)) as session:
            session.run(case.job("lru+previous-token", slots=4, write_back=True))
        return backend.waits

    total = run(None)
    caught = 0
    for i in range(total):
        try:
            run(i)
        except Race:
            caught += 1
    assert caught > total / 4, (caught, total)


def test_an_engine_without_waits_computes_with_wrong_bytes():
    """The random order of the host backend finds it too, from the outputs alone."""

    class Deaf(HostBackend):
        def wait(self, stream, event): ...

    case = generate(9, decode=6)
    found = []
    for seed in range(5):
        with Session(Deaf(shuffle=seed), How(dtype="fp32")) as session:
            run = session.run(case.job("lru", slots=4))
        found.append(verified(run))
        assert verified(run) == (not run.problems)
    assert not any(found)


def test_prefetches_are_fed_in_pieces_and_finished_when_wanted(monkeypatch):
    """Both ways of a guess are taken: some pieces between demands, the rest on the demand stream."""
    taken = {PREFETCH: 0, DEMAND: 0}
    queue = Feed._queue

    def counted(self, guess, stream):
        taken[stream] += 1
        queue(self, guess, stream)

    monkeypatch.setattr(Feed, "_queue", counted)
    case = generate(9, layers=3, experts=8, decode=20)
    job = case.job("lru+previous-token", slots=8, prefetch_pieces=200)
    with Session(Checked(shuffle=5), How(dtype="fp32")) as session:
        run = session.run(job)
    assert verified(run)
    assert min(taken.values()) > 20
    plan = mechanism("expert-cache").plan(job)
    size = plan.copy_bytes[plan.copy_kind == KIND]
    assert sum(taken.values()) == (-(-size // 200)).sum()
