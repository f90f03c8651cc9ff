"""The host time of hooks: counted where it is asked for, and only there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
from routing import generate

import uvmsim
from traces.errors import InputError
from uvmsim.experts import hook_time
from uvmsim.mechanisms import mechanism


@pytest.fixture
def job():
    case = generate(4, layers=4, experts=8, top_k=2, sequences=2, decode=40, prefill=6)
    return case.job("learned", slots=16)


def test_nothing_is_measured_unless_asked(job, monkeypatch):
    monkeypatch.setattr("uvmsim.mechanisms.expert_cache.hook_time", None)
    plan = mechanism("expert-cache").plan(job)
    assert plan.policy_ns is None and plan.notes == []


def test_measured_time_delays_each_layer_by_its_tokens(job, monkeypatch):
    told = hook_time.HookTime(prefill=7.0, decode=1000.0)
    monkeypatch.setattr("uvmsim.mechanisms.expert_cache.hook_time", lambda job: told)
    plain = mechanism("expert-cache").plan(job)
    timed = mechanism("expert-cache").plan(replace(job, policy_time=True))
    w = job.workload
    phase = w.step_phase[w.event_step]
    want = np.where(phase == 1, 1000, 7) * w.event_tokens
    first = np.concatenate(([True], np.diff(plain.wave_event) != 0))
    assert (timed.pre_ns - plain.pre_ns == np.where(first, want[plain.wave_event], 0)).all()
    assert (
        timed.compute_ns == plain.compute_ns
    ).all() and timed.counters.hits == plain.counters.hits
    assert "1,000" not in timed.notes[0] and "4.0 us a decode token" in timed.notes[0]


def test_a_policy_that_works_takes_longer_than_lru(job):
    found = hook_time.hook_time(job)
    assert 0 < found.decode < 1e6
    assert 0 < found.prefill < 1e6


def test_another_machine_keeps_what_was_measured(job, monkeypatch):
    told = hook_time.HookTime(prefill=0.0, decode=500.0)
    monkeypatch.setattr("uvmsim.mechanisms.expert_cache.hook_time", lambda job: told)
    cache = mechanism("expert-cache")
    timed = replace(job, policy_time=True)
    faster = replace(
        timed, hardware=replace(job.hardware, h2d_bytes_per_s=2 * job.hardware.h2d_bytes_per_s)
    )
    again = cache.again(cache.run(timed, "fast", False), faster)
    assert again.speeds() == cache.run(faster, "fast", False).speeds()


def test_a_sweep_measures_where_it_is_asked_to(monkeypatch):
    """An axis of its own; cells without it keep their keys."""
    told = hook_time.HookTime(prefill=0.0, decode=5000.0)
    monkeypatch.setattr("uvmsim.mechanisms.expert_cache.hook_time", lambda job: told)
    asked = uvmsim.Scenario(policies=["lru"], slots=64, limit=780)
    plain = uvmsim.sweep(asked, {"link": ["28GB/s", "55GB/s"]}).table()
    both = uvmsim.sweep(asked, {"link": ["28GB/s", "55GB/s"], "policy_time": [False, True]}).table()
    off = both.filter(pc.invert(both["policy_time"]))
    on = both.filter(both["policy_time"])
    assert off.drop_columns("time_s").num_rows == on.num_rows == 2
    assert off["cell"].to_pylist() == plain["cell"].to_pylist() != on["cell"].to_pylist()
    assert off["time_s"].to_pylist() == plain["time_s"].to_pylist()
    assert off["hits"].to_pylist() == on["hits"].to_pylist()
    slower = [
        a < b for a, b in zip(off["time_s"].to_pylist(), on["time_s"].to_pylist(), strict=True)
    ]
    assert slower == [True, True]


def test_a_sweep_begins_from_nothing():
    with pytest.raises(InputError, match="state: a sweep's policies begin from nothing"):
        uvmsim.sweep(uvmsim.Scenario(state="S"), {"link": ["28GB/s"]})
