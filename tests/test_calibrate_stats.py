"""Reductions and fits of the calibration, against constants that are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.calibrate import synthetic
from replay.calibrate.engine_fit import TERMS, fit, shapes, terms
from replay.calibrate.profile import Measurements
from replay.calibrate.stats import fit_copies, non_negative, repeat, row
from uvmsim.machine.hardware import Hardware
from uvmsim.studies.simulate import simulate


def test_row_has_median_spread_and_rate():
    r = row([100.0, 300.0, 200.0], 1000, what="x")
    assert (r["what"], r["median_ns"], r["n"], r["bytes"]) == ("x", 200.0, 3, 1000)
    assert r["bytes_per_s"] == 5_000_000_000
    assert r["p10_ns"] < r["median_ns"] < r["p90_ns"]


def test_repeat_stops_when_the_budget_is_spent_but_never_before_three():
    assert len(repeat(lambda: 2e9, 10, budget_s=1.0)) == 3
    assert len(repeat(lambda: 1.0, 10)) == 10


@given(
    latency=st.floats(0, 20_000), rate=st.floats(1e9, 3e12),
    sizes=st.lists(st.integers(4096, 1 << 28), min_size=2, max_size=12, unique=True),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_fit_copies_finds_the_line_it_was_given(latency, rate, sizes):
    rows = [{"bytes": s, "median_ns": latency + s / rate * 1e9} for s in sizes]
    found_latency, found_rate, worst = fit_copies(rows)
    assert worst < 1e-3
    for r in rows:
        assert found_latency + r["bytes"] / found_rate * 1e9 == pytest.approx(
            r["median_ns"], rel=1e-3
        )


def test_fit_copies_needs_two_sizes():
    with pytest.raises(ValueError, match="two sizes"):
        fit_copies([{"bytes": 10, "median_ns": 1.0}, {"bytes": 10, "median_ns": 2.0}])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_non_negative_is_no_worse_than_any_point_of_a_fine_grid(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((6, 2)), rng.standard_normal(6)
    x = non_negative(a, b)
    assert (x >= 0).all()
    best = float(np.sum((a @ x - b) ** 2))
    grid = np.linspace(0, 3, 31)
    for point in itertools.product(grid, grid):
        assert best <= float(np.sum((a @ np.array(point) - b) ** 2)) + 1e-9


# ---- synthetic routing and the fit of the engine's runs ------------------------------------------


@pytest.mark.parametrize("missing", [0, 1, 2, 4])
def test_synthetic_cache_misses_what_it_says(missing):
    shape = synthetic.Shape("expert-cache", 65536, 65536, 4, missing, layers=3, steps=20)
    plan = simulate(synthetic.job(shape, Hardware.load("h100"))).trail.plan
    assert plan is not None
    miss = (plan.hit.reshape(shape.steps, shape.layers, shape.top_k) == 0).sum(axis=2)
    assert (miss[5:] == missing).all()


def test_fit_recovers_the_constants_of_the_time_model():
    """Runs timed by the simulator itself: the fit must give back the machine they were timed for."""
    hw = Hardware.load("h100")
    rows = []
    for shape in shapes(quick=False):
        result = simulate(synthetic.job(shape, hw), shape.mode)
        steps = np.diff(result.step_end, prepend=0)[5:]
        about = {k: getattr(shape, k) for k in shape.__dataclass_fields__}
        rows.append({**about, "verified": True, "issue_ns": 0.0, **row(steps)})
        assert len(terms(shape)) == len(TERMS)
    found = fit(rows, Measurements("cuda", {}, "2026-01-01"))
    want = {k: getattr(hw, k) for k in ("copy_latency_ns", "h2d_bytes_per_s")}
    want |= {k: getattr(hw.engine, k) for k in TERMS[:3]}
    want |= {k: getattr(hw.reach, k) for k in ("expert_bytes_per_s", "dense_bytes_per_s")}
    for key, value in want.items():
        assert found[key][0] == pytest.approx(value, rel=0.02), key


def test_fit_leaves_out_runs_that_the_host_could_not_keep_up_with():
    hw = Hardware.load("h100")
    rows = []
    for i, shape in enumerate(shapes(quick=False)):
        result = simulate(synthetic.job(shape, hw), shape.mode)
        ns = float(np.diff(result.step_end)[-1])
        about = {k: getattr(shape, k) for k in shape.__dataclass_fields__}
        slow = 10 * ns if i == 0 else ns  # the first run took as long as its host did
        rows.append({**about, "verified": True, "issue_ns": slow if i == 0 else 0.0, **row([slow])})
    found = fit(rows, Measurements("cuda", {}, "2026-01-01"))
    assert found["h2d_bytes_per_s"][0] == pytest.approx(hw.h2d_bytes_per_s, rel=0.02)
    with pytest.raises(ValueError, match="usable"):
        fit(rows[:2], Measurements("cuda", {}, "2026-01-01"))
