"""Copies behind from pageable memory, queued by a second thread: right bytes in any order of threads
and streams, and whatever goes wrong there is told here."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import cases, generate, settings_for
from test_replay_counters import FAST, QUICK_CPU, assert_same_row

from replay.backend.base import PREFETCH
from replay.backend.host import Faults, HostBackend
from replay.carrier import Carrier
from replay.results import verified
from replay.session import Session
from traces.errors import InputError

SLOW_LINK = replace(QUICK_CPU, h2d_bytes_per_s=10**8, pageable_h2d_bytes_per_s=10**8)
"""Slower than the CPU, which takes every miss."""


class Slow(HostBackend):
    """Copies ahead keep the calling thread, as pageable ones do, and note which one that is."""

    pause = 0.0005

    def copy_in(self, dst: int, src: int, nbytes: int, stream: int) -> None:
        if stream == PREFETCH:
            time.sleep(self.pause)
            self.callers = getattr(self, "callers", set()) | {threading.current_thread().name}
        super().copy_in(dst, src, nbytes, stream)


def job(**how):
    case = generate(5, layers=3, experts=8, top_k=3, sequences=3)
    return case.job(
        "lru", slots=12, **{"hardware": SLOW_LINK, "behind": True, "pinned": False} | how
    )


def no_thread_left() -> bool:
    return not any(t.name == "copies behind" for t in threading.enumerate())


@pytest.mark.parametrize("shuffle", [None, 1, 2, 3])
@pytest.mark.parametrize("detail", [False, True])
def test_a_pageable_run_whose_cpu_takes_every_miss(shuffle, detail):
    with Session(Slow(shuffle=shuffle), replace(FAST, detail=detail)) as session:
        run = session.run(job(), "hybrid")
        assert session.backend.callers == {"copies behind"}
    assert_same_row(run, "hybrid")
    assert run.to_json()["misses_by"]["cpu-behind"] > 10
    assert run.counters.hits > 0
    if detail:
        assert run.trail.measured.busy_ns[PREFETCH] > 0
    assert no_thread_left()


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_write_backs_scratch_places_and_prefetchers(data):
    case = data.draw(cases())
    how = data.draw(settings_for(case))
    policy = data.draw(st.sampled_from(("lru:bypass=1", "lru", "lru+previous-token")))
    if policy != "lru":
        how["write_back"], how["scratch"] = False, data.draw(st.integers(1, 4))
    backend = Slow(shuffle=data.draw(st.none() | st.integers(0, 1000)))
    backend.pause = data.draw(st.sampled_from((0.0, 0.0002)))
    pace = replace(FAST, ahead=data.draw(st.integers(0, 3)), detail=data.draw(st.booleans()))
    asked = case.job(
        policy, profile=case.workload(), hardware=SLOW_LINK, behind=True, pinned=False, **how
    )
    with Session(backend, pace) as session:
        assert_same_row(session.run(asked, "hybrid"), "hybrid")


@pytest.mark.parametrize("how", [{"pinned": True}, {"hardware": QUICK_CPU, "behind": False}])
def test_where_it_is_not_needed_nothing_is_copied_by_another_thread(how):
    backend = Slow()
    with Session(backend, FAST) as session:
        assert verified(session.run(job(**how), "hybrid"))
    assert getattr(backend, "callers", set()) <= {threading.current_thread().name}


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [("copy_fails", InputError, "injected"), ("interrupt", KeyboardInterrupt, None)],
)
def test_what_goes_wrong_there_is_raised_here(fault, error, told):
    with Session(Slow(), FAST) as session:
        session.run(job(), "hybrid")
        number = session.backend._copies + 20
        session.backend.faults = Faults(**{fault: number})
        with pytest.raises(error, match=told):
            session.run(job(), "hybrid")
    assert no_thread_left()


class Recorder:
    """A backend and places in one: notes what is done."""

    def __init__(self) -> None:
        self.done: list[tuple] = []
        self.go = threading.Event()

    def enter_thread(self) -> None:
        self.done.append(("enter", threading.current_thread().name))

    def record(self, event: int, stream: int) -> None:
        self.done.append(("record", event))

    def move_in(self, expert: int, slot: int, stream: int) -> None:
        self.go.wait(5)
        self.done.append(("move", expert, slot))
        if expert == 99:
            raise InputError("no such expert")


def test_order_marks_and_joins():
    r = Recorder()
    c = Carrier(r, r, [100, 101, 102])  # type: ignore[arg-type]
    c.ask([(7, 1), (8, 2)], 50, 51)
    c.join(0)  # nothing was asked for
    assert c.spans() == []
    r.go.set()
    c.join(2)
    assert c.spans() == [(50, 51)] and c.spans() == []
    assert c.waited_ns() > 0 and c.waited_ns() == 0
    assert r.done == [
        ("enter", "copies behind"), ("record", 50), ("move", 7, 1), ("record", 101),
        ("move", 8, 2), ("record", 102), ("record", 51),
    ]  # fmt: skip
    c.ask([(99, 0)])
    for call in (c.join_all, lambda: c.join(0), lambda: c.ask([(1, 1)])):
        with pytest.raises(InputError, match="no such"):
            call()
    c.close()
    c.close()
    assert no_thread_left()
