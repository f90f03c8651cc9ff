"""Experts placed beforehand: who is the GPU's, against a slow and obvious version; what it costs."""

from __future__ import annotations

import naive_misses
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing import cases, generate, settings_for
from test_misses import QUICK, assert_same, served

from traces.errors import InputError
from uvmsim.mechanisms import mechanism
from uvmsim.policies.static_placement import PLACES


def chosen(case, profile, place: str, slots: int, pool: str, seed: int) -> set[tuple[int, int]]:
    """(layer, expert) that have a slot, pool by pool."""
    layers, n = len(case.layers), case.n_experts
    every = [(layer, e) for layer in range(layers) for e in range(n)]
    uses = dict.fromkeys(every, 0)
    w = profile.workload()
    for e, tokens in zip(w.ids.tolist(), w.counts.tolist(), strict=True):
        uses[e // n, e % n] += tokens
    if pool == "global":
        pools, room = [every], min(slots, layers * n)
    else:
        pools = [[x for x in every if x[0] == layer] for layer in range(layers)]
        room = min(slots // layers, n)
    rng, found = np.random.default_rng(seed), set()
    for mine in pools:
        if place == "frequency":
            mine = sorted(mine, key=lambda x: -uses[x])
        elif place == "uniform":
            mine = sorted(mine, key=lambda x: x[1])
        elif place == "random":
            mine = [mine[i] for i in rng.permutation(len(mine))]
        found |= set(mine[:room])
    return found


@pytest.mark.parametrize("place", PLACES)
def test_equals_reference(place):
    @QUICK
    @given(st.data())
    def check(data):
        case = data.draw(cases())
        how = data.draw(settings_for(case, units=("event",))) | {
            "scratch": data.draw(st.integers(0, 3))
        }
        how.pop("write_back", None)
        profile = generate(
            data.draw(st.integers(0, 99)), len(case.layers), case.n_experts, case.top_k,
            first_block=case.layers[0],
        )  # fmt: skip
        kept = chosen(case, profile, place, how["slots"], how["pool"], how["seed"])
        want = naive_misses.simulate(
            case.rows, "lru", n_experts=case.n_experts, top_k=case.top_k,
            bytes_of=list(case.expert_bytes),
            answer=lambda layer, e, i: "insert" if (layer, e) in kept else "cpu", **how,
        )  # fmt: skip
        job = case.job(f"static-placement:place={place}", profile=profile.workload(), **how)
        decisions, parts = served(job)
        assert_same(case, decisions, parts, want)
        assert decisions.counters().evictions == 0

    check()


def test_once_everything_chosen_was_used_no_byte_moves():
    case = generate(3, layers=4, experts=8, top_k=2, sequences=1, prefill=60, decode=40)
    job = case.job("static-placement:place=uniform", slots=16, profile=case.workload(), scratch=0)
    plan = mechanism("expert-cache").plan(job)
    assert plan.counters.misses_by["insert"] == len(plan.copy_bytes) <= 16
    e = job.workload.ids % 8
    later = np.arange(len(e)) >= np.searchsorted(job.workload.event_step, 1)
    seen = np.isin(job.workload.ids, job.workload.ids[: int((~later).sum())])
    assert (plan.hit[later & seen] == (e[later & seen] < 4)).all()


def test_a_prefetched_expert_leaves_before_a_chosen_one():
    case = generate(3, layers=4, experts=8, top_k=2, sequences=2, prefill=6, decode=40)
    job = case.job(
        "static-placement:place=front+next-layer", slots=12, profile=case.workload(), scratch=1
    )
    plan = mechanism("expert-cache").plan(job)
    assert plan.counters.prefetch_issued > 0 and plan.slots == 12


def test_a_place_that_does_not_exist_is_one_line():
    case = generate(3, layers=2, experts=8, top_k=2)
    job = case.job("static-placement:place=best", slots=8, profile=case.workload())
    with pytest.raises(InputError, match=r"place='best' is none of frequency, uniform, random, fr"):
        mechanism("expert-cache").plan(job)
