"""The study of published hybrid tables: its results are the code's, and within what its text says."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import ROOT

FOLDER = ROOT / "experiments" / "hybrid_published"
sys.path.insert(0, str(FOLDER))

import imp_cache  # noqa: E402
import ktransformers  # noqa: E402

RESULTS = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_every_published_cell_is_there_and_says_whether_it_was_fitted():
    published = json.loads((FOLDER / "published.json").read_text(encoding="utf-8"))
    told = published["ktransformers"]
    for key in ("ktransformers", "ktransformers_sync_fitted"):
        found = RESULTS[key]
        at = {(c["column"], c["share"]): c for c in found["cells"]}
        for column in ("random", "uniform", "frequency"):
            assert [at[column, s]["published"] for s in told["shares"]] == told[column]
        free = [c for c in found["cells"] if c["published"] and not c["fitted"]]
        assert len(free) == found["predicted"] == (26 if key == "ktransformers" else 25)
        off = [abs(c["simulated"] / c["published"] - 1) for c in free]
        assert found["mean_error"] == pytest.approx(np.mean(off)) and np.mean(off) < 0.05
        assert found["worst_error"] == pytest.approx(max(off)) and max(off) < 0.16
    assert [r["tokens_per_s"] for r in RESULTS["imp"]["rows"]] == [
        r["tokens_per_s"] for r in published["imp"]["rows"]
    ]


def test_cells_simulated_anew_are_those_recorded():
    found = RESULTS["ktransformers"]
    fitted = ktransformers.Fitted(**found["constants"])
    pair = ktransformers.traces(fitted.zipf)
    for c in found["cells"]:
        if c["share"] in (0, 50, 100):
            got = ktransformers.tokens_per_s(fitted, pair, c["column"], c["share"])
            assert got == pytest.approx(c["simulated"], rel=1e-12)


def test_repeats_within_a_window_by_hand():
    ids = np.array([[[0, 1]], [[1, 2]], [[0, 3]]])
    assert imp_cache.within(ids, 4, 1) == 0.25  # 1 of {1, 2}, none of {0, 3}
    assert imp_cache.within(ids, 4, 2) == 0.5  # 0 of {0, 3} was used two tokens before


def test_a_matrix_is_an_expert_of_its_own_gates_first():
    ids = np.array([[[2, 0]]], np.int16)
    trace = imp_cache.by_matrix(ids, 3)
    assert np.asarray(trace.experts).tolist() == [[6, 0, 7, 1, 8, 2]] and trace.n_experts == 9
