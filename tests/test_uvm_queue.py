"""The paging driver's event queue, where pages are, and records held against that."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest
from fake_paging import BASE, _entry
from hypothesis import given
from hypothesis import strategies as st

from traces.capture import uvm_queue
from traces.capture.looks import Look, Looks, compare
from traces.capture.residency import host_frames, map_on_host, on_host, run_lengths
from traces.capture.uvm_columns import OPTIONAL, columns
from traces.capture.uvm_queue import (
    CPU_FAULT,
    ENTRY_BYTES,
    GET_BEHIND,
    GPU_FAULT,
    KINDS,
    LAYOUTS,
    MIGRATION,
    PUT_BEHIND,
    REPLAY,
    Ring,
    only,
)
from traces.errors import InputError
from traces.faults import FaultWriter, open_faults

PAGE = 4096


class Driver:
    """What the driver does with a ring (uvm_tools.c, enqueue_event_v2)."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring

    def put(self, entry: np.ndarray) -> None:
        mask = self.ring.count - 1
        get, put = int(self.ring.place[GET_BEHIND]) & mask, int(self.ring.place[PUT_BEHIND]) & mask
        if ((self.ring.count + get - put) & mask) == 1:
            self.ring.lost[entry[0, 0]] += 1
            return
        self.ring.entries[put] = entry[0]
        self.ring.place[PUT_BEHIND] = (put + 1) & mask


@given(st.lists(st.integers(0, 9), max_size=12), st.sampled_from([2, 4, 8]))
def test_what_is_put_comes_out_in_order_or_is_counted(bursts, count):
    ring = Ring(count)
    driver, sent, got = Driver(ring), 0, []
    for burst in bursts:
        for _ in range(burst):
            driver.put(_entry(GPU_FAULT, "gpu_fault", batch=sent))
            sent += 1
        got += only(ring.read(), "gpu_fault")["batch"].tolist()
        assert len(ring.read()) == 0
    assert got == sorted(got)
    assert len(got) + ring.dropped().get("gpu_fault", 0) == sent


def test_a_ring_is_a_power_of_two_long():
    with pytest.raises(ValueError, match="power of two"):
        Ring(3)


def test_entries_are_as_long_as_the_drivers():
    assert {layout.itemsize for layout in LAYOUTS.values()} == {ENTRY_BYTES}
    assert ctypes.sizeof(uvm_queue._Tracker) == 64
    assert (uvm_queue._Tracker.uvm_fd.offset, uvm_queue._Tracker.granted.offset) == (44, 56)


def test_kinds_are_told_apart():
    raw = np.concatenate(
        [
            _entry(GPU_FAULT, "gpu_fault", address=BASE),
            _entry(MIGRATION, "migration", bytes=8192),
            _entry(REPLAY, "replay", batch=7),
        ]
    )
    assert only(raw, "gpu_fault")["address"].tolist() == [BASE]
    assert only(raw, "migration")["bytes"].tolist() == [8192]
    assert only(raw, "replay")["batch"].tolist() == [7]
    assert not len(only(raw, "eviction"))


def test_no_driver_is_one_line():
    if Path(uvm_queue.DEVICE).exists():
        pytest.skip("there is a driver here")
    with pytest.raises(InputError, match=r"is not there\); take CUPTI"):
        uvm_queue.EventQueue(2)


def test_columns_of_a_trace(tmp_path):
    raw = np.concatenate(
        [
            _entry(GPU_FAULT, "gpu_fault", batch=3, address=BASE, client=5, gpc=2, time=100,
                   time_gpu=7, gpu=1, access=2),
            _entry(MIGRATION, "migration", cause=3, dst=1, address=BASE, bytes=4096, begin=110,
                   end=140, begin_gpu=20, end_gpu=29),
            _entry(MIGRATION, "migration", cause=1, src=1, address=BASE, bytes=4096, begin=300),
            _entry(REPLAY, "replay", batch=3, time=200, time_gpu=30, gpu=1),
            _entry(CPU_FAULT, "cpu_fault", access=1, address=BASE, time=310, thread=12),
        ]
    )  # fmt: skip
    writer = FaultWriter(tmp_path / "t.arrow", {}, optional=OPTIONAL)
    for made in columns(raw, 100, 9):
        writer.append(**made)
    writer.close({})
    t = open_faults(tmp_path / "t.arrow")
    rows = {r["time_ns"]: r for r in t.table.to_pylist()}
    assert sorted(rows) == [0, 10, 100, 200, 210]
    assert rows[0] | {"kind": "gpu_fault", "access": "write", "batch": 3, "client": 2 << 16 | 5,
                      "gpu_time_ns": 7, "device": 0, "process": 9} == rows[0]  # fmt: skip
    assert rows[10] | {"kind": "migration_in", "cause": "prefetch", "duration_ns": 9} == rows[10]
    assert rows[200] | {"kind": "migration_out", "cause": "user", "duration_ns": None} == rows[200]
    assert rows[100]["kind"] == "replay" and rows[210]["thread"] == 12


def test_the_page_table_knows_what_was_touched():
    memory = mmap.mmap(-1, 16 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (2, 3, 9):
        memory[page * PAGE] = 1
    assert np.flatnonzero(on_host(address, 16 * PAGE)).tolist() == [2, 3, 9]
    frames = host_frames(address, 16 * PAGE)
    assert frames is None or (np.flatnonzero(frames >= 0) == [2, 3, 9]).all()
    map_on_host(address, 16 * PAGE)
    assert on_host(address, 16 * PAGE).all()


def test_runs_of_frames():
    frames = np.array([5, 6, 7, -1, 8, 20, 21, 3])
    assert run_lengths(frames).tolist() == [3, 1, 2, 1]
    assert run_lengths(np.array([-1, -1])).tolist() == []


MOVES = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 7), st.integers(1, 4), st.booleans()), max_size=12
)


@given(
    MOVES,
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_looks_against_records_by_hand(moves, before, after):
    at = 0x10000 * PAGE
    first = Look(10, [(at, 8 * PAGE)], [np.array(before)])
    last = Look(40, [(at, 8 * PAGE)], [np.array(after)])
    moves = [(t, p, min(n, 8 - p), w) for t, p, n, w in moves]
    found = compare(
        first, last, np.array([m[0] for m in moves], np.int64),
        np.array([at + m[1] * PAGE for m in moves], np.int64),
        np.array([m[2] * PAGE for m in moves], np.int64), np.array([m[3] for m in moves], bool),
    )  # fmt: skip
    way: dict[int, bool] = {}
    for t, p, n, w in sorted(moves, key=lambda m: m[0]):
        if 10 < t <= 40:
            way |= dict.fromkeys(range(p, p + n), w)
    came = [p for p in range(8) if before[p] and not after[p]]
    went = [p for p in range(8) if not before[p] and after[p]]
    assert found.came == len(came) * PAGE and found.went == len(went) * PAGE
    assert found.came_unrecorded == sum(way.get(p) is not True for p in came) * PAGE
    assert found.went_unrecorded == sum(way.get(p) is not False for p in went) * PAGE


def test_looks_of_a_recording():
    looks = Looks()
    assert looks.compared() == [] and looks.ranges == []
    looks.taken += [
        Look(0, [(0, 2 * PAGE)], [np.array([True, True])]),
        Look(9, [(0, 2 * PAGE)], [np.array([False, False])]),
    ]
    looks.note(np.array([5]), np.array([0]), np.array([PAGE]), np.array([True]))
    (found,) = looks.compared()
    assert (found["came"], found["came_unrecorded"]) == (2 * PAGE, PAGE)
    assert set(KINDS) >= set(LAYOUTS)
