"""Every number that the commands of frozen/runs.toml print is, byte for byte, the one recorded.

A change that means to alter numbers records them anew: `python tests/frozen/freeze.py --write`.
"""

from __future__ import annotations

import os

import pytest
from frozen import freeze

FAST = freeze.chosen(fast=True)
SLOW = [name for name in freeze.chosen() if name not in FAST]


@pytest.fixture(scope="module")
def frozen():
    return freeze.load()


@pytest.fixture(scope="module")
def worker():
    with freeze.Worker() as process:
        yield process


def test_every_run_is_recorded_and_no_other(frozen):
    assert set(frozen) == set(freeze.runs())


@pytest.mark.parametrize("name", FAST)
def test_numbers_are_those_recorded(name, frozen, worker):
    found = freeze.compared(name, worker.run(name), frozen)
    assert not found, f"{name}: {freeze.described(found)}"


@pytest.mark.skipif(
    not os.environ.get("UVMSIM_SLOW_TESTS"),
    reason=f"{len(SLOW)} more runs take minutes; set UVMSIM_SLOW_TESTS=1",
)
def test_all_other_numbers_are_those_recorded(frozen):
    wrong = [
        f"{name}: {freeze.described(found)}"
        for name, answer, _ in freeze.perform_all(SLOW)
        if (found := freeze.compared(name, answer, frozen))
    ]
    assert not wrong, "\n".join(wrong)


# The comparison itself, on values made up here.

WANT = {"out": [{"runs": [{"bytes": 1, "time_s": 0.5, "by": {"a": None}}]}]}


def changed(**values):
    run = {"bytes": 1, "time_s": 0.5, "by": {"a": None}} | values
    return {"result": {"out": [{"runs": [run]}]}}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (changed(time_s=0.5000000000000001), "out[0].runs[0].time_s: frozen 0.5, now 0.5000000"),
        (changed(bytes=1.0), "out[0].runs[0].bytes: frozen 1, now 1.0"),
        (changed(by={}), "out[0].runs[0].by.a: frozen null, now absent"),
        (changed(more=3), "out[0].runs[0].more: not frozen, now 3"),
        ({"result": {"out": [{"runs": []}]}}, "out[0].runs: frozen 1 items, now 0"),
        ({"error": "it broke\n"}, "failed: it broke"),
    ],
)
def test_a_difference_is_named(answer, message):
    (line,) = freeze.compared("x", answer, {"x": WANT})
    assert message in line


def test_equal_values_have_no_differences():
    assert freeze.compared("x", changed(), {"x": WANT}) == []
    assert freeze.compared("y", changed(), {"x": WANT}) != []


def test_permitted_changes(monkeypatch):
    monkeypatch.setattr(freeze, "RENAMES", {"bytes": "bytes_in", "y*/time_s": "seconds"})
    monkeypatch.setattr(freeze, "REMOVED", ("a",))
    monkeypatch.setattr(freeze, "ADDED", ("x*/more",))
    run = {"bytes_in": 1, "time_s": 0.5, "by": {}, "more": 3}
    answer = {"result": {"out": [{"runs": [run]}]}}
    assert freeze.compared("x", answer, {"x": WANT}) == []
    assert len(freeze.compared("y", answer, {"y": WANT})) == 3


def test_what_is_not_frozen_keeps_its_place():
    value = {"uvmsim": "0.1.0", "tool": "uvmsim 0.1.0, simulated", "time_s": 1.5, "ttft_s": None}
    assert freeze.without(value, "replay-x") == {
        "uvmsim": freeze.LEFT_OUT,
        "tool": "uvmsim (version), simulated",
        "time_s": freeze.LEFT_OUT,
        "ttft_s": None,
    }
    assert freeze.without(value, "compare-x")["time_s"] == 1.5


def test_long_lists_are_frozen_as_a_hash():
    short, long = list(range(freeze.LONG)), list(range(100))
    assert freeze.shortened({"a": short, "b": [{"c": 1}] * 100}) == {
        "a": short,
        "b": [{"c": 1}] * 100,
    }
    got = freeze.shortened([long[:50], long[50:]])
    assert (got["length"], got["first"]) == (2, long[:6])
    other = freeze.shortened([long[:50], [*long[50:99], 98]])
    assert got["sha256"] != other["sha256"]
