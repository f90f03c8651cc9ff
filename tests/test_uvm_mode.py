"""Mode ``uvm``: its costs calibrated from the engine's own runs, its page faults counted elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_cupti import NOW, FakeCupti
from test_validate_virtual import HW, VirtualBackend, deciding, make

from replay.backend.base import BACK, COMPUTE
from replay.calibrate import fault_child
from replay.calibrate.fault_count import count
from replay.calibrate.uvm_mode import TOP_K, UVM, fit, job, measure, moves, plains
from replay.results import verified
from replay.session import How, Session
from replay.validate import config as config_module
from replay.validate.grid import build
from replay.validate.uvm import KEYS, FaultCosts, load
from traces.capture import cuda_driver
from traces.errors import InputError
from traces.files.schema import DECODE
from uvmsim.machine.hardware import Hardware
from uvmsim.mechanisms import mechanism
from uvmsim.runs.plan import DEMAND
from uvmsim.studies.simulate import simulate

FAULT = (0, 1_100_000, 1_600_000, 2_300_000, 2_800_000)
"""ns that the paging device needs for 0 ... 4 experts faulted in by one kernel."""
EVICT, EVICT_CALL = 700_000, 90_000


class PagingBackend(VirtualBackend):
    """The virtual device with managed memory: faults inside kernels, prefetches to the host on a
    link of their own, the first of a wave dearer."""

    def __init__(self, hw: Hardware):
        super().__init__(hw)
        self.there: set[int] = set()

    def migrate(self, ptr, nbytes, to_device, stream):
        super().migrate(ptr, nbytes, to_device, stream)
        if stream == COMPUTE:  # everything, before the run
            self.there.clear()
            return
        assert stream == BACK and not to_device
        self.there.discard(ptr)
        first = self.clock[BACK] <= self.clock[COMPUTE]
        self.clock[BACK] = max(self.clock[BACK], self.clock[COMPUTE] if first else 0)
        self.clock[BACK] += EVICT + EVICT_CALL * first

    def experts(self, layout, tasks, n, first_access, *more):
        super().experts(layout, tasks, n, first_access, *more)
        wanted = {int(p) for p in tasks.weights[:n]}
        self.clock[COMPUTE] += FAULT[len(wanted - self.there)]
        self.there |= wanted


@pytest.fixture(scope="module")
def fitted() -> dict:
    with Session(PagingBackend(HW)) as session:
        rows = [measure(session, p) for p in plains(quick=True)]
    assert all(r["verified"] for r in rows)
    return fit(rows)


def test_calibration_finds_the_paging_devices_costs(fitted):
    value = {k.removeprefix(f"{UVM}."): v for k, (v, _) in fitted.items()}
    assert set(value) == set(KEYS)
    assert value["fault_ns"] == pytest.approx(FAULT[1:], rel=0.01)
    assert value["evict_ns"] == pytest.approx(EVICT, rel=0.02)
    assert value["evict_event_ns"] == pytest.approx(EVICT_CALL, rel=0.1)
    # Faults there cost the same at every size.
    assert value["fault_fixed_share"] == pytest.approx(1, abs=0.02)
    assert "0.0% off" in fitted[f"{UVM}.fault_ns"][1]


@pytest.mark.parametrize(("policy", "slots"), [("lru", 12), ("belady", 8), ("lru", 20)])
def test_prediction_meets_the_paging_device(fitted, policy, slots):
    values = {k: fitted[f"{UVM}.{k}"][0] for k in KEYS}
    costs = FaultCosts(**values | {"fault_ns": tuple(values["fault_ns"])})
    made = make(policy, slots)
    made = replace(made, hardware=deciding(0))  # decided ahead of the device
    with Session(PagingBackend(HW), How(dtype="fp32")) as session:
        done = session.run(made, "uvm")
    assert verified(done), done.problems
    rest = simulate(costs.job(made), "expert-cache")
    step_ns = np.diff(rest.step_end, prepend=0)
    split = rest.to_json()
    more = costs.apply(made, split, step_ns)
    decode = made.workload.step_phase == DECODE
    assert step_ns[decode].sum() == pytest.approx(done.step_ns[decode].sum(), rel=0.001)
    assert sum(split["time_split_s"].values()) == pytest.approx(step_ns.sum() / 1e9, rel=0.01)
    assert more["faults"]["bytes_in"] == split["bytes_h2d"]


@pytest.mark.parametrize("p", plains(quick=False), ids=lambda p: f"{p.run}-{p.missing}-{p.slots}")
def test_synthetic_runs_miss_what_they_say(p):
    small = replace(p, expert_bytes=4096, dtype="fp32")
    m = moves(job(small, HW))
    warm = m.step >= p.cold
    assert p.layers * p.n_experts * p.expert_bytes < 3_400_000_000
    if p.run == "random":
        assert len(np.unique(m.missing[warm])) >= TOP_K
        return
    assert set(m.missing[warm]) == {p.missing}
    assert set(m.leaving[warm]) == {0 if p.run == "filling" else p.missing}


def test_moves_are_the_plans(fitted):
    made = make("lru+next-layer", 12)
    m, plan = moves(made), mechanism("expert-cache").plan(made)
    assert int(m.missing_bytes.sum()) == plan.bytes_of(DEMAND)
    assert m.prefetched > 0 and m.step.max() == made.workload.n_steps - 1


def test_costs_scale_with_the_expert_and_beyond_the_table():
    costs = FaultCosts(1000, (10_000, 14_000, 18_000, 22_000), 500, 2000, 0.5, 0.0)
    m = moves(make("lru", 8))
    one = replace(m, missing=np.array([1, 6]), missing_bytes=np.array([1000, 3000]),
                  leaving=np.array([0, 2]), leaving_bytes=np.array([0, 1000]),
                  step=np.array([0, 0]))  # fmt: skip
    faults, evict = costs.times(one, 1)
    assert faults.tolist() == [10_000 + round(30_000 * 0.75)]
    assert evict.tolist() == [round(4500 * 0.5)]


def test_a_profile_without_them_is_refused_in_one_line(tmp_path):
    for text in (None, "{}", '{"fitted": {}, "tables": {}}', "["):
        if text is not None:
            (tmp_path / "c.measurements.json").write_text(text)
        with pytest.raises(InputError, match="no times of mode managed") as err:
            load(str(tmp_path / "c.toml"))
        assert "\n" not in str(err.value)


# ---- counting ------------------------------------------------------------------------------------


@pytest.fixture
def cupti(monkeypatch) -> Iterator[FakeCupti]:
    fake = FakeCupti()
    package = type(sys)("cupti")
    package.__dict__["cupti"] = fake
    monkeypatch.setitem(sys.modules, "cupti", package)
    monkeypatch.setitem(sys.modules, "cupti.cupti", fake)
    monkeypatch.setattr(cuda_driver, "start", lambda: 1)
    monkeypatch.setattr(cuda_driver, "synchronize", lambda: None)
    yield fake


def record(kind: int, at: int, value: int, flags: int = 0) -> dict:
    return {"counter_kind": kind, "address": 65536, "start": NOW + at, "end": NOW + at + 1,
            "value": value, "flags_": flags}  # fmt: skip


def test_each_run_gets_the_records_of_its_time(cupti, tmp_path, monkeypatch):
    times = iter((10, 20, 30, 40))
    monkeypatch.setattr("traces.capture.cupti.FaultRecording.now_ns", lambda self: next(times))

    def work(request, clock, windows):
        for name in ("a", "b"):
            with fault_child.timed(clock, windows, cell=name):
                pass
        cupti.emit([record(4, 5, 1000), record(4, 12, 3), record(4, 33, 5), record(1, 15, 4096, 3),
                    record(2, 35, 8192, 3), record(2, 25, 999)])  # fmt: skip

    monkeypatch.setitem(fault_child.WORK, "validate", work)
    made = fault_child.answer({"what": "validate", "trace": str(tmp_path / "f.arrow")})
    a, b = made["windows"]
    assert (a["cell"], a["fault_groups"], a["bytes_in"], a["bytes_out"]) == ("a", 3, 4096, 0)
    assert (b["cell"], b["fault_groups"], b["bytes_in"], b["bytes_out"]) == ("b", 5, 0, 8192)
    assert a["by_cause"] == {"migration_in, prefetch": 4096}
    assert made["recording"]["rows"] == 6 and made["recording"]["buffers"] >= 1
    assert made["recording"]["everything"]["fault_groups"] == 1008 and made["why"] == ""
    json.dumps(made)


def test_what_fails_in_the_middle_keeps_what_was_counted(cupti, tmp_path, monkeypatch):
    def work(request, clock, windows):
        with fault_child.timed(lambda: 0, windows, cell="a"):
            cupti.emit([record(4, 0, 3)])
        raise RuntimeError("no more")

    monkeypatch.setitem(fault_child.WORK, "validate", work)
    made = fault_child.answer({"what": "validate", "trace": str(tmp_path / "f.arrow")})
    assert made["windows"][0]["fault_groups"] == 3
    assert "no more" in made["why"]


def test_nothing_recorded_says_so(cupti, tmp_path, monkeypatch):
    monkeypatch.setitem(fault_child.WORK, "validate", lambda *_: None)
    made = fault_child.answer({"what": "validate", "trace": str(tmp_path / "f.arrow")})
    assert made["windows"] == [] and made["why"] == "CUPTI reported nothing"


GRID = """
mode = ["uvm"]
policy = ["lru", "belady"]
slots = ["25%", "50%"]
[[trace]]
path = "bundled"
expert_size = "4KiB"
dtype = "fp32"
limit = 770
"""


def test_the_child_runs_what_it_is_asked(cupti, tmp_path):
    """Both kinds of work, on the host backend; the config goes through JSON as it does to a
    process."""
    (tmp_path / "g.toml").write_text(GRID)
    loaded = config_module.load(tmp_path / "g.toml")
    keys = [c.key for c in build(loaded, HW).cells][1:3]
    request = {
        "what": "validate", "config": loaded.model_dump(mode="json", exclude_defaults=True),
        "hardware": "h100", "cells": keys, "backend": "host", "trace": str(tmp_path / "f.arrow"),
    }  # fmt: skip
    windows: list[dict] = []
    request = json.loads(json.dumps(request))
    fault_child.WORK["validate"](request, lambda: 7, windows)
    assert [w["cell"] for w in windows] == keys
    windows.clear()
    fault_child.WORK["calibrate"]({"backend": "host"}, lambda: 7, windows)
    assert windows[0]["missed_bytes"] > 0 and windows[0]["left_bytes"] > 0


def test_a_process_of_its_own_answers_or_says_why(monkeypatch):
    """Where there is no CUPTI or no GPU, that is what it says."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("for machines without a GPU")
    made = count({"what": "calibrate", "backend": "host"}, 60)
    assert made["windows"] == [] and made["recording"]["rows"] == 0
    assert "cupti-python" in made["why"] or "driver" in made["why"]
    made = count({"what": "calibrate", "backend": "host"}, 0.01)
    assert "took more than" in made["why"]
    made = count({"what": "nonsense"}, 60)
    assert made["windows"] == []
