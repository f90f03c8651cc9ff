"""How much a fault trace lacks, against a page table that is kept by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.faults import PAGE, FaultTrace, fault_table
from traces.faults import whole as whole_module
from traces.faults.check import check_faults
from traces.faults.stats import fault_statistics
from traces.faults.whole import missing

BASE = 0x7F0000000000
PAGES_A_BLOCK = 512


def make(events: list[dict[str, Any]], **meta: Any) -> FaultTrace:
    """A trace of events, in order."""
    names = sorted({n for e in events for n in e} | {"time_ns", "kind"})
    events = [{"time_ns": i, "process": 1} | e for i, e in enumerate(events)]
    names = sorted({*names, "process"})
    return FaultTrace(fault_table({n: [e.get(n) for e in events] for n in names}), meta)


def move(way: str, page: int, n: int = 1, **more: Any) -> dict[str, Any]:
    return {"kind": f"migration_{way}", "address": BASE + PAGE * page, "bytes": PAGE * n} | more


moves = st.lists(
    st.tuples(st.sampled_from(["in", "out"]), st.integers(0, 40), st.integers(1, 20)),
    min_size=1,
    max_size=30,
)


@given(moves, st.integers(1, 2))
def test_pages_that_moved_the_same_way_twice(given: list[Any], processes: int) -> None:
    events, side = [], {}
    lost = {"in": 0, "out": 0}
    for i, (way, first, n) in enumerate(given):
        process = i % processes
        events.append(move(way, first, n, process=process))
        for page in range(first, first + n):
            if side.get((process, page)) == way:
                lost["out" if way == "in" else "in"] += PAGE
            side[process, page] = way
    m = missing(make(events))
    if len({way for way, *_ in given}) < 2:
        assert (m.bytes_in, m.bytes_out) == (None, None)
    else:
        assert (m.bytes_in, m.bytes_out) == (lost["in"], lost["out"])


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(1, 600)), max_size=20),
    st.data(),
)
def test_a_whole_recording_lacks_nothing_and_a_hole_is_no_more_than_itself(
    wanted: list[Any], data: st.DataObject
) -> None:
    """Pages go to and fro as the driver moves them; then one record is taken out."""
    on_gpu: set[int] = set()
    events = []
    for inward, block, n in wanted:
        for page in range(block * PAGES_A_BLOCK, block * PAGES_A_BLOCK + min(n, PAGES_A_BLOCK)):
            if (page in on_gpu) != inward:
                (on_gpu.add if inward else on_gpu.remove)(page)
                events.append(move("in" if inward else "out", page))
    if not events:
        return
    m = missing(make(events))
    assert not m.bytes_in and not m.bytes_out
    hole = data.draw(st.integers(0, len(events) - 1))
    rest = events[:hole] + events[hole + 1 :]
    if rest:
        m = missing(make(rest))
        assert (m.bytes_in or 0) + (m.bytes_out or 0) <= PAGE


def test_a_lost_return_is_found() -> None:
    events = [move("in", 0, 4), move("out", 0, 4), move("in", 8, 2)]
    assert missing(make(events)).bytes_out == 0
    t = make([*events, move("in", 8, 2)])
    assert missing(t).bytes_out == 2 * PAGE
    found = {f.code: f for f in check_faults(t)}
    assert found["lost-migrations"].severity == "warning" and found["lost-migrations"].count == 2
    assert fault_statistics(t)["missing"]["bytes_out"] == 2 * PAGE


def test_large_traces_are_sampled_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    for block in range(64):
        events += [move(w, block * PAGES_A_BLOCK, 512) for w in ("in", "in", "out")]
    exact = missing(make(events)).bytes_out
    assert exact == 64 * 512 * PAGE
    monkeypatch.setattr(whole_module, "MOST_PAGES", 64 * 512 * 3 // 4)
    assert missing(make(events)).bytes_out == exact


def test_faults_without_arrival() -> None:
    fault = {"kind": "gpu_fault", "address": BASE}
    other = {"kind": "gpu_fault", "address": BASE + (2 << 20)}
    t = make([fault, move("in", 3), other])
    assert missing(t).blocks_without_arrival == 1
    assert [(f.code, f.severity, f.count) for f in check_faults(t)] == [("no-arrival", "note", 1)]
    mapped = {"kind": "remote_map", "address": BASE + (2 << 20), "bytes": PAGE}
    assert missing(make([fault, move("in", 3), other, mapped])).blocks_without_arrival == 0
    assert missing(make([fault, other])).blocks_without_arrival is None


def test_records_that_were_handed_over_and_are_not_there() -> None:
    said = {"delivered": 5, "ignored": 1, "dropped": 0}
    t = make([move("in", 0), move("in", 1)], recording=said)
    assert missing(t).unwritten == 2 and missing(t).dropped == 0
    assert "unwritten-records" in {f.code for f in check_faults(t)}


def test_two_devices_or_no_metadata_tell_nothing() -> None:
    t = make([move("in", 0, device=0), move("in", 0, device=1), move("out", 0, device=1)])
    assert missing(t) == whole_module.Missing(None, None, None, None, None)


def test_a_trace_file_of_long_ago_has_no_remarks(tmp_path: Path) -> None:
    t = make([move("in", 0)])
    t.save(tmp_path / "t.arrow")
    from traces.faults import open_faults

    assert "recording" not in open_faults(tmp_path / "t.arrow").meta
