"""One model, two clocks: the SimPy engine and the compiled one agree to the nanosecond."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import cases, generate, settings_for
from test_sim_clock_reference import same, tick

from uvmsim.clocks import des, fast
from uvmsim.machine.hardware import Hardware
from uvmsim.mechanisms import mechanism
from uvmsim.runs.job import DoesNotFit
from uvmsim.studies.simulate import simulate

POLICIES = ("lru", "lru+previous-token", "lru+next-layer", "lru+oracle", "belady+oracle:horizon=3")
FIXED = ("resident", "stream", "zero-copy", "cpu-offload")


@st.composite
def machines(draw) -> Hardware:
    """Links and launch costs over wide ranges, so that compute or copies dominate, or neither."""
    rate = st.sampled_from((10**6, 10**8, 10**9, 25 * 10**9))
    cost = st.sampled_from((0, 1, 1000, 50_000))
    h2d, d2h = draw(rate), draw(rate)
    hw = Hardware.load("rtx5090")
    program = replace(
        hw.engine, dense_launch_ns=draw(cost), expert_launch_ns=draw(cost), decision_ns=draw(cost),
        cpu_sync_ns=draw(cost),
    )  # fmt: skip
    return replace(
        hw, engine=program,
        h2d_bytes_per_s=h2d, d2h_bytes_per_s=d2h,
        pageable_h2d_bytes_per_s=max(h2d // 3, 1), pageable_d2h_bytes_per_s=max(d2h // 3, 1),
        copy_latency_ns=draw(cost), memory_bytes_per_s=draw(rate),
        cpu_bytes_per_s=draw(rate), duplex=draw(st.booleans()),
    )  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_expert_cache_has_one_timeline(policy):
    @settings(max_examples=30, deadline=None)
    @given(st.data())
    def check(data):
        case = data.draw(cases())
        job = case.job(
            policy, hardware=data.draw(machines()), pinned=data.draw(st.booleans()),
            prefetch_pieces=data.draw(st.sampled_from((0, 0, 1, 50, 700, 10**6))),
            **data.draw(settings_for(case)),
        )  # fmt: skip
        plan = mechanism("expert-cache").plan(job)
        same(fast.run(plan), des.run(plan))

    check()


ASKING = f"{Path(__file__).parent / 'asking.py'}:Asking"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_becomes_of_misses_has_one_timeline(data):
    """Scratch places, the CPU beside copies, copies behind."""
    case = data.draw(cases())
    how = data.draw(settings_for(case))
    policy = data.draw(st.sampled_from(("lru", "lru:bypass=1+previous-token", ASKING)))
    if policy != "lru":
        how["write_back"], how["scratch"] = False, data.draw(st.integers(1, 3))
    job = case.job(policy, hardware=data.draw(machines()), behind=data.draw(st.booleans()), **how)
    plan = mechanism(data.draw(st.sampled_from(("hybrid", "expert-cache")))).plan(job)
    same(fast.run(plan), des.run(plan))


@pytest.mark.parametrize("name", FIXED)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_other_mechanisms_have_one_timeline(name, data):
    case = data.draw(cases())
    job = case.job(
        hardware=data.draw(machines()), unit=data.draw(st.sampled_from(("event", "access"))),
        write_back=data.draw(st.booleans()), ncmoe=data.draw(st.integers(0, 5)),
    )  # fmt: skip
    plan = mechanism(name).plan(job)
    same(fast.run(plan), des.run(plan))


def test_a_real_plan_tick_by_tick():
    """Not only random plans: a policy's own plan, on a link slow enough to make prefetches late."""
    hw = Hardware.load("rtx5090")
    program = replace(hw.engine, dense_launch_ns=40, expert_launch_ns=10, decision_ns=5)
    hw = replace(
        hw, engine=program, h2d_bytes_per_s=20 * 10**9, d2h_bytes_per_s=20 * 10**9,
        copy_latency_ns=3, duplex=True,
    )  # fmt: skip
    case = generate(3, layers=3, experts=8, top_k=2, decode=15)
    job = case.job("lru+previous-token", hardware=hw, slots=7, write_back=True)
    plan = mechanism("expert-cache").plan(job)
    assert plan.counters.prefetch_used and plan.counters.prefetch_wasted
    want = tick(plan)
    same(fast.run(plan), want)
    same(des.run(plan), want)
    late = int((want.copy_done[plan.waits] > _opening_of_waits(plan, want)).sum())
    result = simulate(job).to_json()
    assert 0 < late < plan.counters.prefetch_used
    assert result["prefetch"]["late"] == late
    assert result["prefetch"]["useful"] == plan.counters.prefetch_used - late


def _opening_of_waits(plan, t) -> np.ndarray:
    out = []
    lo = 0
    for wave, hi in enumerate(plan.wave_wait_hi.tolist()):
        out += [int(t.wave_open[wave])] * (hi - lo)
        lo = hi
    return np.array(out, np.int64)


def test_the_results_are_equal_too():
    """Through `simulate`, as the command line uses it: every number of the JSON row."""
    case = generate(4, layers=4, experts=12, top_k=3, decode=20)
    for policy in ("lru", "lru+next-layer"):
        job = case.job(policy, slots=14, write_back=True)
        assert simulate(job, clock="fast").to_json() == simulate(job, clock="des").to_json()


@pytest.mark.parametrize("unit", ["event", "access"])
@pytest.mark.parametrize("name", ["expert-cache", *FIXED])
def test_steps_without_any_known_row(name, unit):
    """Forward passes whose routing is unknown still take their dense time, in order."""
    case = generate(6, layers=2, experts=6, top_k=2, sequences=2, decode=5, prefill=3)
    rows = case.rows
    steps = sorted({r.step for r in rows})
    for gone in (steps[0], steps[1], steps[4], steps[-1]):
        rows = [replace(r, experts=None) if r.step == gone else r for r in rows]
    case = replace(case, rows=rows)
    try:
        plan = mechanism(name).plan(case.job("lru", slots=6, unit=unit, ncmoe=1))
    except DoesNotFit:
        pytest.fail("a model of some kilobytes must fit")
    a, b = fast.run(plan), des.run(plan)
    same(a, b)
    assert len(a.step_end) == len(steps)
    assert (np.diff(a.step_end, prepend=0) >= 0).all()
    # Every pass has dense work, known routing or not.
    assert (np.diff(a.step_end, prepend=0) > 0).all()
