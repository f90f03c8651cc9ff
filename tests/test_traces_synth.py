"""Synthetic traces: the statistics asked for, valid routing, one seed one trace."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces_naive import decode_trace, random_ids

from traces import InputError
from traces.files.schema import DECODE, PREFILL
from traces.importers.dump import import_routing
from traces.models.info import ModelInfo
from traces.routing import RoutingTrace
from traces.routing.check import check
from traces.routing.stats import expert_counts, statistics
from traces.synth.generate import fit, independent, popularity_logits, zipf_logits
from traces.synth.kernels import gumbel
from traces.synth.whole import from_numbers, like, llama_bench, shuffle

MODEL = ModelInfo("toy", 4, (0, 1, 2, 3), 32, 4)


def small(seed: int = 0, **kw: float) -> RoutingTrace:
    numbers = {"zipf": 0.6, "stickiness": 0.45, "topic": 0.3} | kw
    return from_numbers(MODEL, seed, **numbers, tokens=2000, sequence=500)


def test_gumbel_quantiles() -> None:
    from math import erfc, log, sqrt

    for x in np.linspace(-5.9, 5.9, 400):
        u = 0.5 * erfc(-x / sqrt(2))
        exact = -log(-log(u)) if u < 0.999 else -log(0.5 * erfc(x / sqrt(2)))
        assert gumbel(x) == pytest.approx(exact, abs=2e-3)


def test_one_seed_one_trace() -> None:
    assert small(3).sha256 == small(3).sha256 != small(4).sha256


def test_a_synthetic_trace_passes_its_checks() -> None:
    t = small()
    assert check(t) == []
    assert t.capabilities == {"router_weights", "ranked_ids"}
    assert t.dense.weights.sum(axis=2) == pytest.approx(1.0, abs=1e-5)
    assert (np.diff(t.weights, axis=1) <= 0).all()


@pytest.mark.parametrize(("stickiness", "topic"), [(0.45, 0.3), (0.6, 0.5), (0.3, 0.2)])
def test_overlaps_are_those_asked_for(stickiness: float, topic: float) -> None:
    s = statistics(small(stickiness=stickiness, topic=topic).dense, hit_rates=False)
    assert s["overlap"]["1"] == pytest.approx(stickiness, abs=0.04)
    assert s["overlap"]["32"] == pytest.approx(topic, abs=0.04)


def test_what_cannot_be_had_is_refused() -> None:
    for bad in ({"stickiness": 0.05}, {"stickiness": 1.0}, {"topic": 0.9}):
        with pytest.raises(InputError, match="stickiness"):
            small(**bad)


@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_rows_hold_k_distinct_experts(n: int, k: int, seed: int) -> None:
    k = min(k, n)
    ids, weights = independent(zipf_logits(2, n, 1.0, seed), k).generate(np.array([0, 5, 30]), seed)
    assert ids.shape == (30, 2, k) and ids.min() >= 0 and ids.max() < n
    assert all(len(set(row)) == k for row in ids.reshape(-1, k).tolist())
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-5)


def test_first_choice_follows_the_weights() -> None:
    """Gumbel top-k: the first of the k is drawn with probability proportional to its weight."""
    logits = zipf_logits(1, 8, 1.0, 0)
    ids, _ = independent(logits, 2).generate(np.array([0, 40_000]), 1)
    got = np.bincount(ids[:, 0, 0], minlength=8) / 40_000
    want = np.exp(logits[0]) / np.exp(logits[0]).sum()
    np.testing.assert_allclose(got, want, atol=0.01)


def test_popularity_is_recovered_from_counts() -> None:
    ids, _ = independent(zipf_logits(1, 32, 0.8, 0), 4).generate(np.array([0, 30_000]), 1)
    counts = np.bincount(ids.reshape(-1), minlength=32)[None]
    again, _ = independent(popularity_logits(counts, 4), 4).generate(np.array([0, 30_000]), 2)
    got = np.bincount(again.reshape(-1), minlength=32)
    np.testing.assert_allclose(got / 30_000, counts[0] / 30_000, atol=0.015)


def test_fit_to_a_known_trace() -> None:
    real = small()
    made = like(real, 1)
    a, b = statistics(real.dense), statistics(made.dense)
    for lag in a["overlap"]:
        assert a["overlap"][lag] == pytest.approx(b["overlap"][lag], abs=0.03)
    for share in a["skew"]["top"]:
        assert a["skew"]["top"][share] == pytest.approx(b["skew"]["top"][share], abs=0.03)
    for name in ("seq", "pos", "step", "phase", "layer"):
        np.testing.assert_array_equal(made.columns[name], real.columns[name])
    assert made.meta.extra["synthetic"]["like_sha256"] == real.sha256


def test_like_with_another_length() -> None:
    real = small()
    for tokens in (700, 4500):
        made = like(real, 1, tokens)
        assert made.n_tokens == tokens and check(made) == []
        assert len(np.unique(made.seq)) == -(-tokens // 500)


def test_fit_is_deterministic_and_copes_with_missing_rows() -> None:
    t = small().head(600)
    ids = t.experts.copy()
    ids[::7] = -1
    holed = RoutingTrace(dict(t.columns) | {"experts": ids}, t.meta)
    a, b = fit(holed.dense, 5), fit(holed.dense, 5)
    np.testing.assert_array_equal(a.share, b.share)
    np.testing.assert_array_equal(a.logits, b.logits)
    assert np.isfinite(a.logits).all() and (a.share.sum(axis=1) <= 1 + 1e-9).all()


def test_fit_to_one_token() -> None:
    t = decode_trace([random_ids(np.random.default_rng(0), 1, 2, 8, 2)], 8)
    assert like(t, 0, 20).n_tokens == 20


def test_llama_bench() -> None:
    logits = zipf_logits(4, 32, 0.8, 0)
    t = llama_bench("pp1100,tg128", MODEL, MODEL.moe_layers, logits, 0)
    assert check(t) == []
    d = t.dense
    assert t.n_steps == 3 + 128 and (d.phase == PREFILL).sum() == 1100
    assert np.bincount(d.step)[:4].tolist() == [512, 512, 76, 1]
    assert (d.phase[d.seq == 1] == DECODE).all() and d.pos[d.seq == 1].tolist() == list(range(128))
    s = statistics(d, hit_rates=False)
    share = expert_counts(d) / 1228
    by_chance = float((share**2).sum(axis=1).mean() / 4)
    for lag in ("1", "8", "32"):
        assert s["overlap"][lag] == pytest.approx(by_chance, abs=0.02)
    for bad in ("pp", "tg0", "xx12", "pp512,,tg1"):
        with pytest.raises(InputError, match="--llama-bench"):
            llama_bench(bad, MODEL, MODEL.moe_layers, logits, 0)


def test_shuffle_keeps_popularity_and_removes_time_order() -> None:
    t = small()
    s = shuffle(t, 1)
    assert check(s) == [] and s.sha256 != t.sha256
    for name in ("seq", "pos", "step", "phase", "layer"):
        np.testing.assert_array_equal(s.columns[name], t.columns[name])
    for seq in range(4):
        of = t.dense.seq == seq
        a, b = t.dense.ids[of], s.dense.ids[of]
        # Whole tokens move: the same rows, in another order.
        assert sorted(map(bytes, a)) == sorted(map(bytes, b))
    before, after = statistics(t.dense), statistics(s.dense)
    assert before["skew"] == after["skew"]
    assert after["overlap"]["1"] == pytest.approx(after["overlap"]["32"], abs=0.02)
    assert after["overlap"]["1"] < before["overlap"]["1"] - 0.05


@pytest.mark.shared_data
def test_fit_to_gpt_oss(shared_data: Path) -> None:
    real = import_routing(shared_data / "routing" / "gpt-oss-20b" / "gpqa_main.npz")
    a, b = statistics(real.dense), statistics(like(real, 0).dense)
    for lag in a["overlap"]:
        assert a["overlap"][lag] == pytest.approx(b["overlap"][lag], abs=0.01)
    for share in a["skew"]["top"]:
        assert a["skew"]["top"][share] == pytest.approx(b["skew"]["top"][share], abs=0.02)
    for limit in a["reuse"]["cumulative"]:
        assert a["reuse"]["cumulative"][limit] == pytest.approx(
            b["reuse"]["cumulative"][limit], abs=0.02
        )
    assert a["hit_rate"]["lru"] == pytest.approx(b["hit_rate"]["lru"], abs=0.02)
    assert a["hit_rate"]["lfu"] == pytest.approx(b["hit_rate"]["lfu"], abs=0.03)
