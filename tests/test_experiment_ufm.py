"""The UFM study: published rows within tolerance, out-of-memory worked out, closed forms of a scan."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import naive
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import Case, cases, settings_for
from test_sim_clock_reference import same
from test_sim_engines import machines

from traces.errors import InputError
from uvmsim.clocks import des, fast
from uvmsim.machine.hardware import Hardware
from uvmsim.mechanisms import mechanism
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.runs.plan import WRITEBACK
from uvmsim.studies.simulate import simulate

FOLDER = ROOT / "experiments" / "rtx4090_ufm"
sys.path.insert(0, str(FOLDER))

import ufm_manager  # noqa: E402
import ufm_model  # noqa: E402
import ufm_study  # noqa: E402

PUBLISHED = {
    (r["experts"], r["mode"]): r for r in json.loads(ufm_study.PUBLISHED.read_text())["rows"]
}


@pytest.fixture(scope="module")
def study():
    return ufm_study.study()


# ---- the published table ---------------------------------------------------------------------------


def test_speeds_are_within_two_and_a_half_percent(study):
    rows = [r for r in study["table"] if not r["out_of_memory"]]
    assert len(rows) == 11
    fitted = [r for r in rows if r["speed_fits"]]
    assert len(fitted) == 4
    assert max(abs(r["error"]) for r in fitted) < 0.002
    assert max(abs(r["error"]) for r in rows) < 0.025


def test_peaks_are_within_the_published_rounding(study):
    rows = [r for r in study["table"] if r["published_peak_gib"]]
    assert len(rows) == 11
    for r in rows:
        assert r["peak_gib"] == pytest.approx(r["published_peak_gib"], abs=0.011), r


def test_the_order_within_a_number_of_experts_is_right(study):
    """Above the target ufm is slower than naive offload; below it, hundreds of times faster."""
    for n in ufm_model.COUNTS:
        mine = {r["mode"]: r for r in study["table"] if r["experts"] == n}
        assert (mine["ufm"]["tokens_per_s"] < mine["naive_offload"]["tokens_per_s"]) == (n > 120)
        published = [PUBLISHED[n, mode]["tokens_per_s"] for mode in ("ufm", "naive_offload")]
        assert (published[0] < published[1]) == (n > 120)


def test_out_of_memory_is_worked_out(study):
    """Exactly the published row, and not on a card with room."""
    out = [(r["experts"], r["mode"]) for r in study["table"] if r["out_of_memory"]]
    assert out == [k for k, r in PUBLISHED.items() if r.get("out_of_memory")] == [(192, "baseline")]
    job = ufm_model.job(192)
    need = 192 * ufm_model.EXPERT_BYTES + 2048 * 192 * 4
    for vram, status in ((need, "ok"), (need - 1, "out-of-memory")):
        hw = replace(job.hardware, vram_bytes=vram)
        assert simulate(replace(job, hardware=hw), "resident").to_json()["status"] == status


def test_constants_follow_from_the_rows_they_name():
    """Worked out by hand from the published numbers; the files hold them rounded."""
    hw = ufm_model.machine()
    step = {k: 512 / r["tokens_per_s"] for k, r in PUBLISHED.items() if "tokens_per_s" in r}
    step[144, "ufm"] = 10.141
    size = ufm_model.EXPERT_BYTES
    slope = (step[96, "baseline"] - step[48, "baseline"]) / 48
    read = size / hw.reach.expert_bytes_per_s
    assert pytest.approx((slope - read) * 1e9, rel=0.002) == ufm_model.EXPERT_CALL_NS
    fixed = step[48, "baseline"] - 48 * slope
    assert pytest.approx(fixed * 1e9, rel=0.002) == ufm_model.STEP_NS
    calls = ufm_model.measured_accesses(ufm_model.MODES["ufm"].run(144))[1] / 2
    naive_offload = (step[144, "naive_offload"] - fixed) / calls - slope
    back = naive_offload - size / hw.pageable_h2d_bytes_per_s
    assert size / back == pytest.approx(hw.pageable_d2h_bytes_per_s, rel=0.005)
    alloc = (step[144, "ufm"] - fixed) / calls - slope - 2 * size / hw.h2d_bytes_per_s
    assert size / alloc == pytest.approx(hw.pinned_alloc_bytes_per_s, rel=0.005)
    peak = PUBLISHED[48, "naive_offload"]["peak_gib"]
    assert peak - size / 2**30 == pytest.approx(ufm_model.WORKSPACE_GIB)


def test_the_command_prints_what_the_readme_holds(study, tmp_path):
    """With the other engine, so that the whole study is a parity test as well."""
    command = [sys.executable, FOLDER / "run.py", "--engine", "des", "--no-plot", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    tables = done.stdout.strip().split("\n\n")
    readme = (FOLDER / "README.md").read_text()
    assert len(tables) == 2
    assert all(t in readme for t in tables)
    for path in (FOLDER, tmp_path):
        kept = json.loads((path / "results.json").read_text())
        assert (kept["table"], kept["unrun"]) == (study["table"], study["unrun"])
        assert kept["constants"]["fitted"] == study["constants"]["fitted"]


# ---- the cyclic scan -------------------------------------------------------------------------------


def scan(n: int, steps: int) -> Case:
    """Every step touches 0 .. n - 1 in order, a token each."""
    rows = [naive.Row(0, s * n + e, s, 0, 0, [e]) for s in range(steps) for e in range(n)]
    return Case(rows, (0,), n, 1)


def scan_plan(n: int, capacity: int, steps: int, policy: str):
    case = scan(n, steps)
    w = ufm_model.one_by_one(case.workload())
    job = Job(w, case.model, Hardware.load("rtx4090"), parse(policy), slots=capacity)
    return mechanism("expert-cache").plan(job)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 6), st.data())
def test_cyclic_scan_to_the_last_hit(n, steps, data):
    """N experts through C < N slots. LRU: none. MRU: after C cold misses, N - C misses and C - 1 hits
    take turns with period N - 1. No policy has more hits than MRU here."""
    c = data.draw(st.integers(1, n - 1))
    t = np.arange(n * steps)
    mru = (t >= c) & ((t - c) % (n - 1) >= n - c)
    assert scan_plan(n, c, steps, "lru").counters.hits == 0
    assert scan_plan(n, c, steps, "mru").hit.tolist() == mru.astype(int).tolist()
    assert scan_plan(n, c, steps, "belady").counters.hits == int(mru.sum())
    assert scan_plan(n, n, steps, "lru").counters.hits == n * (steps - 1)


@pytest.mark.parametrize(("n", "c"), [(144, 120), (192, 120), (192, 168)])
def test_long_scan_tends_to_the_quotient(n, c):
    """Over N - 1 steps after the first, C - 1 of N - 1 accesses hit, exactly."""
    hit = scan_plan(n, c, n, "mru").hit[c : c + n * (n - 1)]
    assert hit.sum() * (n - 1) == (c - 1) * len(hit)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_one_by_one_is_a_loop_over_experts(case):
    w = case.workload()
    got = ufm_model.one_by_one(w)
    want = []
    for i in range(w.n_events):
        lo, hi = int(w.event_lo[i]), int(w.event_lo[i + 1])
        own = sorted(zip(w.ids[lo:hi].tolist(), w.counts[lo:hi].tolist(), strict=True))
        want += [
            (e, k, int(w.event_layer[i]), int(w.event_step[i]), j == 0)
            for j, (e, k) in enumerate(own)
        ]
    columns = (got.ids, got.counts, got.event_layer, got.event_step, got.event_first)
    assert list(zip(*(x.tolist() for x in columns), strict=True)) == want
    assert got.event_lo.tolist() == list(range(len(want) + 1))


# ---- UFM's list ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [144, 192])
def test_the_overshoot_passes_before_the_measured_steps(n):
    """The list overshoots in the first step only; from the second on it is LRU in 120 slots."""
    w = ufm_model.workload(n)
    got = ufm_manager.replay(w.ids.tolist(), n, 120)
    lru = ufm_model.MODES["ufm"].run(n).trail.plan
    late = w.event_step >= 1
    assert np.array(got.hits)[late].tolist() == lru.hit[late].astype(bool).tolist()
    assert len(got.resident) == lru.counters.resident_at_end == 120


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 4))
def test_the_overshoot_in_closed_form(c, extra, tries):
    """A miss past the target gains an expert where all its ``tries`` meet stale entries."""
    n = c + extra
    peak = ufm_manager.replay(list(range(n)) * 2, n, c, tries).peak
    assert peak == c + extra // tries


# ---- an allocation with every write-back -----------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_allocation_has_one_timeline(data):
    case = data.draw(cases())
    hw = replace(data.draw(machines()), pinned_alloc_bytes_per_s=data.draw(st.integers(1, 10**9)))
    how = data.draw(settings_for(case)) | {"write_back": True, "write_back_alloc": True}
    for name in ("expert-cache", "stream"):
        plan = mechanism(name).plan(case.job("lru+next-layer", hardware=hw, **how))
        same(fast.run(plan), des.run(plan))


@pytest.mark.parametrize("name", ["expert-cache", "stream"])
def test_allocation_by_hand(name):
    """A write-back takes its allocation longer, and the directions never run together."""
    hw = replace(
        Hardware.load("rtx4090"), h2d_bytes_per_s=10**9, d2h_bytes_per_s=10**9 // 2, copy_latency_ns=5,
        pinned_alloc_bytes_per_s=10**9 // 4,
    )  # fmt: skip
    how = {"slots": 2, "write_back": True, "write_back_alloc": True, "hardware": hw}
    plan = mechanism(name).plan(scan(4, 2).job("lru", **how))
    back = plan.copy_kind == WRITEBACK
    assert back.any()
    assert set(plan.copy_ns[back].tolist()) == {1000 * 2 + 5 + 1000 * 4}
    assert set(plan.copy_ns[~back].tolist()) == {1000 + 5}


@pytest.mark.parametrize("name", ["expert-cache", "stream"])
def test_allocation_is_refused_where_it_means_nothing(name):
    how = {"slots": 2, "write_back": True, "write_back_alloc": True}
    with pytest.raises(InputError, match="h100: pinned_alloc_bytes_per_s is not known"):
        unknown = replace(Hardware.load("h100"), pinned_alloc_bytes_per_s=None)
        mechanism(name).plan(scan(4, 2).job("lru", hardware=unknown, **how))
    with pytest.raises(InputError, match="pageable rates include allocation"):
        mechanism(name).plan(scan(4, 2).job("lru", pinned=False, **how))
