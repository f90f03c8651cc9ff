"""Statistics and checks of fault traces, against slow obvious references."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.faults import FaultTrace, FaultWriter, fault_table, open_faults
from traces.faults.check import check_faults
from traces.faults.stats import STEP_NAMES, fault_statistics

BASE = 0x7F0000000000
BLOCK = 2 << 20


def make(events: list[dict[str, Any]]) -> FaultTrace:
    names = {n for e in events for n in e}
    return FaultTrace(fault_table({n: [e.get(n) for e in events] for n in names}), {})


def chunk_event(kind: str, ms: int, block: int, chunk: int, process: int = 1) -> dict[str, Any]:
    start = BASE + block * BLOCK
    return {
        "time_ns": ms * 1_000_000,
        "kind": kind,
        "va_block": start,
        "address": start,
        "chunk": 1000 + chunk,
        "process": process,
    }


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["chunk_activate", "chunk_access"]),
        st.integers(0, 20),
        st.integers(0, 5),
        st.integers(0, 3),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=40,
)


@given(EVENTS)
def test_chunk_statistics(given_events: list[Any]) -> None:
    events = sorted((chunk_event(*e) for e in given_events), key=lambda e: e["time_ns"])
    got = fault_statistics(make(events))["chunks"]
    activations = [e for e in events if e["kind"] == "chunk_activate"]
    if not activations:
        assert got is None
        return
    accesses = [e for e in events if e["kind"] == "chunk_access"]
    holder: dict[int, Any] = {}
    other, same, lifetimes = 0, 0, []
    for e in activations:
        before = holder.get(e["chunk"])
        if before is not None:
            if (before["va_block"], before["process"]) == (e["va_block"], e["process"]):
                same += 1
            else:
                other += 1
                lifetimes.append(e["time_ns"] - before["time_ns"])
        holder[e["chunk"]] = e
    assert got["activations"] == len(activations) and got["accesses"] == len(accesses)
    assert got["accesses_per_activation"] == len(accesses) / len(activations)
    assert got["distinct_chunks"] == len(holder)
    assert got["activations_per_chunk"] == len(activations) / len(holder)
    assert got["accesses_per_chunk"] == len(accesses) / len(holder)
    assert got["reuse"]["by_another_block"] == other
    assert got["reuse"]["by_the_same_block"] == same
    if lifetimes:
        found = got["reuse"]["lifetime_ns"]
        assert found["min"] == min(lifetimes) and found["max"] == max(lifetimes)
        assert found["p50"] == median(lifetimes) and math.isclose(found["mean"], mean(lifetimes))
    else:
        assert got["reuse"]["lifetime_ns"] is None


@given(EVENTS)
def test_refaults(given_events: list[Any]) -> None:
    events = sorted((chunk_event(*e) for e in given_events), key=lambda e: e["time_ns"])
    got = (fault_statistics(make(events))["refaults"] or {}).get("blocks")
    seen: dict[Any, int] = {}
    for e in events:
        if e["kind"] == "chunk_activate":
            key = (e["va_block"], e["process"])
            seen[key] = seen.get(key, 0) + 1
    n = sum(seen.values())
    if not n:
        assert got is None
        return
    assert (got["events"], got["again"], got["distinct"]) == (n, n - len(seen), len(seen))
    assert got["most"] == max(seen.values())
    assert got["distinct_again"] == sum(c > 1 for c in seen.values())


def bucket(step: int) -> str:
    for low, name in ((512, ">= +512"), (17, "+17 .. +511"), (2, "+2 .. +16"), (1, "+1")):
        if step >= low:
            return name
    for low, name in ((0, "0"), (-1, "-1"), (-16, "-16 .. -2"), (-511, "-511 .. -17")):
        if step >= low:
            return name
    return "<= -512"


@given(
    st.lists(
        st.tuples(st.one_of(st.integers(0, 6), st.integers(0, 2000)), st.integers(1, 2)),
        min_size=1,
        max_size=40,
    )
)
def test_runs_and_steps(faults: list[tuple[int, int]]) -> None:
    events = [
        {"time_ns": i, "kind": "gpu_fault", "address": BASE + page * 4096, "process": p}
        for i, (page, p) in enumerate(faults)
    ]
    got = fault_statistics(make(events))["gpu_fault_pages"]
    runs, steps = [1], []
    for (a, p), (b, q) in pairwise(faults):
        if p == q:
            steps.append(b - a)
        if p == q and b == a + 1:
            runs[-1] += 1
        else:
            runs.append(1)
    assert got["runs"] == len(runs) and got["longest_run"] == max(runs)
    assert math.isclose(got["mean_run"], mean(runs)) and got["median_run"] == median(runs)
    assert got["distinct"] == len(set(faults))
    for name in STEP_NAMES:
        expected = sum(bucket(s) == name for s in steps)
        assert got["steps"][name] == (expected / len(steps) if steps else None)
    if steps:
        assert got["step_plus_one"] == steps.count(1) / len(steps)
        assert got["step_within_16"] == sum(abs(s) <= 16 for s in steps) / len(steps)


def test_rates_bytes_and_evictions() -> None:
    rows = [
        (0, "migration_in", 4096, 100, "prefetch"),
        (500_000_000, "migration_in", 8192, 100, None),
        (500_000_000, "migration_out", 2048, None, "eviction"),
        (2_000_000_000, "prefetch", 512, None, "user"),
    ]
    names = ("time_ns", "kind", "bytes", "duration_ns", "cause")
    s = fault_statistics(make([dict(zip(names, r, strict=True)) for r in rows]))
    assert s["events"] == 4 and s["span_ns"] == 2_000_000_000
    assert s["kinds"]["migration_in"] == {"events": 2, "per_s": 1.0, "blocks": 0, "chunks": 0}
    inward = s["bytes"]["in"]
    assert inward["bytes"] == 12800 and inward["bytes_per_s"] == 6400.0
    assert inward["bytes_per_busy_s"] == 12800 * 1e9 / 200
    assert inward["causes"] == {
        "prefetch": {"transfers": 1, "bytes": 4096},
        "user": {"transfers": 1, "bytes": 512},
        "unknown": {"transfers": 1, "bytes": 8192},
    }
    assert s["bytes"]["out"]["transfers"] == 1
    assert s["evictions"]["source"] == "migration_out with cause eviction"
    assert s["evictions"]["per_s"] == 0.5 and s["evictions"]["bytes"] == 2048
    assert s["chunks"] is None and s["gpu_fault_pages"] is None and s["refaults"] is None


def test_one_event_has_no_rate() -> None:
    s = fault_statistics(make([{"time_ns": 5, "kind": "eviction_prepare"}]))
    assert s["span_ns"] == 0 and s["kinds"]["eviction_prepare"]["per_s"] is None
    assert s["evictions"] == {
        "events": 1,
        "source": "eviction_prepare",
        "per_s": None,
        "bytes": None,
        "gap_ns": None,
    }


def test_address_spaces_are_told_apart_by_pointer_before_process() -> None:
    a = chunk_event("chunk_activate", 0, 1, 1, process=1) | {"va_space": 7}
    b = chunk_event("chunk_activate", 1, 1, 1, process=2) | {"va_space": 7}
    assert fault_statistics(make([a, b]))["chunks"]["reuse"]["by_the_same_block"] == 1


def codes(t: FaultTrace) -> dict[str, tuple[str, int]]:
    return {f.code: (f.severity, f.count) for f in check_faults(t)}


def test_nothing_is_wrong_with_a_good_trace() -> None:
    events = [
        chunk_event("chunk_activate", 0, 0, 0),
        chunk_event("chunk_access", 1, 0, 0),
        {"time_ns": 1_500_000, "kind": "eviction_prepare"},
        chunk_event("chunk_activate", 2, 3, 0),
    ]
    assert codes(make(events)) == {}


@pytest.mark.parametrize(
    ("code", "severity", "event"),
    [
        (
            "outside-block",
            "error",
            {"kind": "gpu_fault", "va_block": BASE, "address": BASE + BLOCK},
        ),
        ("outside-block", "error", {"kind": "gpu_fault", "va_block": BASE, "address": BASE - 1}),
        ("unaligned-block", "error", {"kind": "chunk_access", "chunk": 1, "va_block": 17}),
        ("negative-bytes", "error", {"kind": "migration_in", "bytes": -1}),
        ("negative-duration", "error", {"kind": "migration_in", "duration_ns": -1}),
        ("no-address", "warning", {"kind": "gpu_fault"}),
        ("no-chunk", "warning", {"kind": "chunk_access", "va_block": BASE, "address": BASE}),
    ],
)
def test_each_check(code: str, severity: str, event: dict[str, Any]) -> None:
    t = make([{"time_ns": 1, "kind": "eviction"}, {"time_ns": 2} | event])
    assert codes(t) == {code: (severity, 1)}
    [finding] = check_faults(t)
    assert finding.first == {"row": 1, "time_ns": 2}


def test_lost_and_missing_activations() -> None:
    events = [
        chunk_event("chunk_access", 0, 9, 5),  # chunk 5 is never activated
        chunk_event("chunk_activate", 1, 0, 0),
        chunk_event("chunk_access", 2, 0, 0),
        chunk_event("chunk_access", 3, 4, 0),  # now it holds another block
        chunk_event("chunk_access", 4, 4, 0),
    ]
    t = make(events)
    assert codes(t) == {
        "lost-activations": ("warning", 2),
        "resident-before": ("note", 1),
        "coarse-times": ("note", 5),
    }
    events += [{"time_ns": 7_000_001, "kind": "eviction_prepare"}] * 100
    assert codes(make(events))["more-evictions-than-activations"] == ("warning", 99)


def test_cut_off_unsorted_and_changed_files(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), FaultWriter(tmp_path / "t.arrow") as w:
        w.append(time_ns=[1, 2], kind="eviction")
        raise RuntimeError
    assert codes(open_faults(tmp_path / "t.arrow.partial")) == {"incomplete": ("warning", 1)}
    t = make([{"time_ns": 1, "kind": "eviction"}, {"time_ns": 2, "kind": "eviction"}])
    t.save(tmp_path / "ok.arrow")
    t = open_faults(tmp_path / "ok.arrow")
    t.table = t.table.slice(1).combine_chunks()
    assert codes(t) == {"hash-mismatch": ("error", 1)}
    t = make([{"time_ns": 1, "kind": "eviction"}, {"time_ns": 2, "kind": "eviction"}])
    t.table = t.table.take([1, 0])
    assert codes(t) == {"out-of-order": ("error", 1)}
