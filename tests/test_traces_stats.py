"""Locality tables against slow references, and against the published ones."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces_naive import (
    decode_trace,
    naive_intervals,
    naive_lru_hits,
    naive_overlap,
    naive_window,
    random_ids,
)

from traces.importers.dump import import_routing
from traces.routing.hitrate import lru_hits
from traces.routing.stats import (
    batch_union,
    expert_counts,
    expert_sets,
    overlap,
    reuse_intervals,
    skew,
    statistics,
    step_union,
    window_distinct,
)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[np.ndarray], int]:
    n = draw(st.sampled_from([4, 8, 63, 64, 65, 130]))
    k = draw(st.integers(1, min(4, n)))
    lengths = draw(st.lists(st.integers(1, 25), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    out = [random_ids(rng, t, 2, n, k) for t in lengths]
    for s in out:
        s[rng.random(s.shape[:2]) < draw(st.sampled_from([0.0, 0.2]))] = -1
    return out, n


@given(sequences())
@settings(max_examples=60, deadline=None)
def test_tables_equal_the_slow_reference(case: tuple[list[np.ndarray], int]) -> None:
    seqs, n = case
    d = decode_trace(seqs, n).dense
    s, k = expert_sets(d), seqs[0].shape[2]
    for lag, got in overlap(s, k, (1, 2, 5)).items():
        want = [np.nan if x is None else x for x in naive_overlap(seqs, lag)]
        np.testing.assert_allclose(got, want, rtol=1e-12)
    got_windows = window_distinct(s, (1, 2, 4, 8))
    for w in (1, 2, 4, 8):
        want_w = naive_window(seqs, w)
        assert (want_w is None) == (w not in got_windows)
        if want_w is not None:
            np.testing.assert_allclose(got_windows[w], want_w, rtol=1e-12)
    intervals, first = naive_intervals(seqs)
    got = reuse_intervals(d, s.bounds, (1, 2, 7))
    total = first + sum(intervals.values())
    assert got["accesses"] == total
    if total:
        assert got["first"] == first / total
        for limit, share in got["cumulative"].items():
            assert share == sum(v for g, v in intervals.items() if g <= limit) / total


@given(sequences(), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_lru_hits_equal_the_slow_reference(case: tuple[list[np.ndarray], int], slots: int) -> None:
    seqs, n = case
    slots = max(slots, seqs[0].shape[2])
    # Between experts of one event the reference evicts the lowest id first, as the kernel does.
    d = decode_trace(seqs, n).dense
    assert lru_hits(d.ids, d.sequence_starts(), n, slots) == naive_lru_hits(seqs, slots)


def test_interleaved_tokens_are_judged_by_sequence() -> None:
    rng = np.random.default_rng(0)
    a, b = random_ids(rng, 30, 2, 16, 4), random_ids(rng, 30, 2, 16, 4)
    t = decode_trace([a, b], 16)
    order = np.argsort(t.pos, kind="stable")
    assert statistics(t.take(order).dense) == statistics(t.dense)


def test_uniform_routing_has_no_locality_and_no_skew() -> None:
    ids = random_ids(np.random.default_rng(0), 4000, 2, 32, 4)
    s = statistics(decode_trace([ids], 32).dense)
    assert abs(s["overlap"]["1"] - 4 / 32) < 0.01
    assert s["skew"]["entropy"] > 0.999 and s["skew"]["gini"] < 0.03


def test_skew_by_hand() -> None:
    s = skew(np.array([[8, 4, 2, 2, 0, 0, 0, 0]]), (0.10, 0.25, 0.5))
    assert s["top"] == {0.10: 0.5, 0.25: 0.75, 0.5: 1.0}
    assert s["never"] == 0.5
    assert s["entropy"] == pytest.approx(1.75 / 3)
    # Gini: mean absolute difference over twice the mean.
    c = np.array([8, 4, 2, 2, 0, 0, 0, 0])
    assert s["gini"] == pytest.approx(np.abs(c[:, None] - c).sum() / (2 * 64 * c.mean()))


def test_zipf_slope_is_recovered() -> None:
    counts = 1e6 * np.arange(1, 65)[None, :] ** -0.7
    assert skew(counts)["zipf"] == pytest.approx(0.7)


def test_batch_union_by_hand() -> None:
    a = np.array([[[0, 1]], [[2, 3]], [[4, 5]]])
    b = np.array([[[0, 2]], [[2, 3]]])
    d = decode_trace([a, b], 8).dense
    got = batch_union(expert_sets(d), (1, 2, 4))
    assert {k: v.tolist() for k, v in got.items()} == {1: [2.0], 2: [2.5]}


def test_step_union_counts_prefill_steps() -> None:
    t = decode_trace([random_ids(np.random.default_rng(0), 6, 2, 8, 2)], 8)
    step = np.array([0, 0, 0, 0, 1, 2])[t.pos].astype(np.int32)
    t = type(t)(dict(t.columns) | {"step": step}, t.meta)
    (u,) = step_union(t.dense)
    want = np.mean([len(np.unique(t.dense.ids[:4, layer])) for layer in (0, 1)])
    assert u == {"tokens": [4, 4], "steps": 1, "distinct": want}
    assert expert_counts(t.dense).sum() == 24


PUBLISHED = {
    "olmoe-1b-7b/trace_olmoe_299.jsonl": {
        "overlap": [0.4352, 0.3491, 0.3112, 0.304, 0.2959, 0.2876],
        "range": (0.3335, 0.521),
        "windows": [8.0, 12.48, 19.24, 28.74, 39.04, 48.25, 55.44, 58.31, 60.5],
        "reuse": [0.4337, 0.5378, 0.644, 0.7703, 0.8883, 0.9489, 0.9684, 0.9737],
        "first": 0.0254,
        "lru": 0.5968,
    },
    "glm-4.5-air/glm45air_routing.jsonl": {
        "overlap": [0.3774, 0.2874, 0.2194, 0.1824, 0.1585, 0.1169],
        "range": (0.1323, 0.4771),
        "windows": [8.0, 13.11, 21.24, 34.1, 53.22, 74.01],
        "reuse": [0.3682, 0.4526, 0.5311, 0.626, 0.7054, 0.7468, 0.7502, 0.7502],
        "first": 0.2498,
        "lru": 0.6069,
    },
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables(shared_data: Path, name: str) -> None:
    s, want = statistics(import_routing(shared_data / "routing" / name).dense), PUBLISHED[name]
    assert [round(x, 4) for x in s["overlap"].values()] == want["overlap"]
    by_layer = s["overlap_by_layer"]
    assert (round(min(by_layer), 4), round(max(by_layer), 4)) == want["range"]
    assert [round(x, 2) for x in s["window_distinct"].values()] == want["windows"]
    assert [round(x, 4) for x in s["reuse"]["cumulative"].values()] == want["reuse"]
    assert round(s["reuse"]["first"], 4) == want["first"]
    assert round(s["hit_rate"]["lru"], 4) == want["lru"]
