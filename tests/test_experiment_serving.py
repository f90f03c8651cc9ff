"""The serving study: what its text says is its results, and its results are the code's."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = ROOT / "experiments" / "rtx5090_serving"
sys.path.insert(0, str(FOLDER))

import serving_cells as sc  # noqa: E402
import serving_study as ss  # noqa: E402
import serving_tables as tables  # noqa: E402

RESULTS = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
PUBLISHED = json.loads(ss.PUBLISHED.read_text(encoding="utf-8"))
FITTED = RESULTS["fits"]["fit"]["stickiness"]


def cell_of(told: dict) -> sc.Cell:
    return sc.Cell(**told | {"breaks": tuple(told["breaks"])})


@pytest.fixture(scope="module")
def trace():
    return sc.routing(sc.key_of(replace(ss.DEFAULT, stickiness=FITTED)))


@pytest.mark.parametrize("name", ["UVM, default", "-ncmoe 32"])
def test_cells_simulated_anew_are_those_recorded(name, trace):
    row = RESULTS["rows"][name]
    cell = cell_of(row["cell"])
    assert cell.stickiness == FITTED and cell.seed == row["seeds"][0] == 0
    got = sc.run(cell, trace)
    for key in ss.EACH:
        assert got[key] == pytest.approx(row["each"][key][0], rel=1e-12)


def test_the_text_holds_the_tables():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for made in tables.tables(RESULTS, PUBLISHED):
        assert made in readme


def test_one_number_is_fitted_and_the_order_of_the_rows_is_right():
    rows = PUBLISHED["rows"]
    assert [r["fitted"] for r in rows] == [True, False, False]
    means = [RESULTS["rows"][r["row"]]["mean"] for r in rows]
    want = [tables.told(r) for r in rows]
    assert means[0]["output_throughput"] == pytest.approx(want[0]["output_throughput"], rel=0.005)
    for key in ss.EACH:
        order = np.argsort([m[key] for m in means])
        assert order.tolist() == np.argsort([w[key] for w in want]).tolist()
        off = [m[key] / w[key] - 1 for m, w in zip(means, want, strict=True)]
        assert max(map(abs, off)) < {"mean_tpot_ms": 0.25}.get(key, 0.2)


def test_means_are_those_of_the_seeds():
    groups = [g for name, g in RESULTS.items() if name != "fits"]
    assert all(
        row["mean"][key] == pytest.approx(np.mean(row["each"][key]), rel=1e-12)
        for g in groups
        for row in g.values()
        for key in ss.EACH
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**31))
def test_lengths_are_within_the_samplers_bounds(n, seed):
    r = sc.lengths(n, seed)
    assert len(r) == n and min(r.prompt.min(), r.output.min()) >= sc.LEAST
    assert r.prompt.max() <= sc.MOST_IN and (r.prompt + r.output).max() <= sc.MOST
    if n >= 20:
        assert r.prompt.mean() == pytest.approx(sc.MEAN_IN, abs=0.5)
        assert r.output.mean() == pytest.approx(sc.MEAN_OUT, abs=0.5)


def test_a_sequence_is_a_prompt_and_another_eight_hundred_tokens(trace):
    d = trace.dense.by_sequence()
    assert np.diff(d.sequence_starts()).tolist() == [2 * sc.SEQUENCE] * sc.SEQUENCES
    assert (d.phase == (d.pos >= sc.SEQUENCE)).all()
