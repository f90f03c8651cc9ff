"""`learned` against a slow version in NumPy, and what it must do whatever it has learned."""

from __future__ import annotations

import naive_online
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import Case, assert_same, cases, generate, naive_of, plan_of, settings_for

from traces.errors import InputError
from uvmsim.experts.cache_misses import cache_misses
from uvmsim.experts.knowledge import context
from uvmsim.policies.online import learner
from uvmsim.policies.registry import parse
from uvmsim.runs.job import capacities
from uvmsim.studies.simulate import check_needs

QUICK = settings(max_examples=30, deadline=None)


def compare(case: Case, policy: str, **how) -> None:
    assert_same(case, plan_of(case, policy, **how), naive_of(case, policy, **how))


@pytest.mark.parametrize("policy", ["learned:warm=0", "learned:warm=5"])
def test_equals_reference(policy):
    @QUICK
    @given(st.data())
    def check(data):
        case = data.draw(cases(max_decode=40))
        compare(case, policy, **data.draw(settings_for(case)))

    check()


@QUICK
@given(st.data())
def test_equals_reference_where_little_is_kept(data):
    """Fewer tracks than sequences, and a history that forgets."""
    case = data.draw(cases(max_decode=30))
    how = data.draw(settings_for(case))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MOST_TRACKS", 2), ("LEAST_TRACKS", 2),
                            ("MOST_TOKENS", 8), ("LEAST_TOKENS", 8)):  # fmt: skip
            patch.setattr(learner, name, value)
        patch.setattr(naive_online.Reader, "tracks", 2)
        patch.setattr(naive_online.Reader, "tokens", 8)
        compare(case, "learned:warm=0", **how)


def test_equals_reference_on_a_longer_trace():
    """Long enough for weights to matter: several sequences one by one, then together."""
    for together in (False, True):
        case = generate(3, layers=4, experts=16, top_k=3, sequences=4, decode=60, prefill=20,
                        together=together)  # fmt: skip
        compare(case, "learned", slots=16)


NEXT = (
    "lru+learned-next:theta=0.3",
    "learned:warm=0+learned-next:theta=0.2:ahead=2:n=3",
    "layer-lru+learned-next:theta=0.1:ahead=3:budget=600:useful=0.6",
    "lru+learned-next:theta=0.25:useful=0.5",
)


@pytest.mark.parametrize("policy", NEXT)
def test_prefetch_equals_reference(policy):
    @QUICK
    @given(st.data())
    def check(data):
        case = data.draw(cases(max_decode=40))
        compare(case, policy, **data.draw(settings_for(case)))

    check()


@pytest.mark.parametrize("policy", NEXT)
def test_prefetch_equals_reference_on_a_longer_trace(policy):
    for together in (False, True):
        case = generate(3, layers=4, experts=16, top_k=3, sequences=3, decode=60, prefill=15,
                        together=together)  # fmt: skip
        compare(case, policy, slots=20)


GATE = (
    "lru+gate-next",
    "learned:warm=0+gate-next:theta=0.2:ahead=2:n=3",
    "layer-lru+gate-next:theta=0.1:budget=600:useful=0.6:gate_rate=0.3",
    "lru+gate-next:theta=0.2:window=2000",
)


@pytest.mark.parametrize("policy", GATE)
def test_gate_equals_reference(policy):
    @QUICK
    @given(st.data())
    def check(data):
        case = data.draw(cases(max_decode=40, guesses=True))
        compare(case, policy, **data.draw(settings_for(case, units=("event",))))

    check()


@pytest.mark.parametrize("policy", GATE)
def test_gate_equals_reference_on_a_longer_trace(policy):
    for together in (False, True):
        case = generate(3, layers=4, experts=16, top_k=3, sequences=3, decode=60, prefill=15,
                        together=together, guesses=True)  # fmt: skip
        compare(case, policy, slots=20)


def test_a_layer_ahead_the_gate_knows_what_counts_do_not():
    """Guesses that are right four times in five: most experts come before the router asks."""
    case = generate(5, layers=6, experts=16, top_k=3, sequences=2, decode=200, guesses=True)
    hits = {
        p: plan_of(case, p, slots=30).counters.hits
        for p in ("lru", "lru+learned-next", "lru+gate-next")
    }
    assert hits["lru+gate-next"] > 1.2 * hits["lru+learned-next"] > hits["lru"]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({}, "needs guesses of the next layers' routers"),
        ({"guesses": True, "unit": "access"}, "needs routers' guesses, which single accesses"),
    ],
)
def test_what_has_no_guesses_is_refused(how, says):
    unit = how.pop("unit", "event")
    case = generate(1, **how)
    with pytest.raises(InputError, match=says):
        check_needs(case.job("lru+gate-next", unit=unit, slots=9), case.trace)


def test_layer_lru_order_before_it_knows():
    case = generate(11, layers=3, experts=12, top_k=2, sequences=1, decode=60, prefill=0)
    learned, lru = (plan_of(case, p, slots=12) for p in ("learned", "layer-lru"))
    assert abs(learned.counters.hits - lru.counters.hits) <= 2  # of equals another may leave


def test_equals_reference_on_real_routing(shared_data, tmp_path):
    from test_sim_policies import real

    case = real(shared_data, tmp_path, "gpt-oss-20b/polyglot.npz", "gpt-oss-20b")
    steps = sorted({r.step for r in case.rows})[:90]
    case = Case([r for r in case.rows if r.step <= steps[-1]], case.layers, 32, 4)
    compare(case, "learned:warm=24", slots=192)


def bytes_of(state) -> int:
    if isinstance(state, np.ndarray):
        return state.nbytes
    return sum(bytes_of(x) for x in state)


@pytest.mark.parametrize("shape", [(48, 128, 8), (24, 32, 4), (26, 64, 6), (45, 128, 8)])
def test_state_is_under_16_mib(shape):
    layers, experts, k = shape
    case = generate(1, layers=layers, experts=experts, top_k=k, sequences=1, decode=1, prefill=0)
    job = case.job("learned", slots=layers * experts // 4)
    state = parse("learned").eviction.state(context(job, *capacities(job)))
    assert bytes_of(state) <= 16 << 20
    floats = [x for x in (*state.learner, state.values.key) if x.dtype.kind == "f"]
    assert {x.dtype for x in floats} == {np.dtype(np.float32)}
    assert state.tracks.seq.size >= 4


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("lrfu:half_life=0", "half_life=0 must be above 0 tokens"),
        ("learned:tau=-1", "tau=-1 must be at least 0"),
        ("learned:warm=-1", "warm=-1 must be at least 0"),
        ("lru+learned-next:ahead=4", "ahead=4 must be from 1 to 3"),
        ("lru+learned-next:theta=1.5", "theta=1.5 must be from 0 to 1"),
        ("lru+gate-next:ahead=3", "ahead=3 must be from 1 to 2"),
        ("lru+next-layer:window=4", "window=4: give a size"),
        ("lru+next-layer:window=x", "next-layer: window=x"),
    ],
)
def test_bad_parameters_are_said(policy, says):
    case = generate(1)
    with pytest.raises(InputError, match=says):
        plan_of(case, policy, slots=6)


def test_plain_sequences():
    """A cache of ids: few are learned, too many are refused; LRFU takes any number."""
    ids = np.random.default_rng(2).zipf(1.3, 3000).astype(np.uint32) % 200
    assert cache_misses(ids, 50, "learned:warm=0") < cache_misses(ids, 50, "fifo")
    assert cache_misses(ids, 50, "lrfu") < cache_misses(ids, 50, "fifo")
    with pytest.raises(InputError, match="too many"):
        cache_misses(np.arange(20_000, dtype=np.uint32), 50, "learned")


@pytest.mark.parametrize("policy", ["learned:warm=0", "lrfu"])
def test_equals_reference_where_layers_are_empty_or_in_use(policy):
    """Pools so small that a layer has nobody, and prefetches that hold other layers' experts."""

    @QUICK
    @given(st.data())
    def check(data):
        case = data.draw(cases(max_decode=25))
        slots = case.top_k + data.draw(st.integers(0, 2))
        compare(case, f"{policy}+oracle:horizon=3", slots=slots)

    check()
