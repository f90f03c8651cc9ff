"""The host time of hooks: counted where it is asked for or the machine's description has it, and only
there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
from routing import generate

import uvmsim
from traces.errors import InputError
from uvmsim.experts import hook_time
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.policy_times import PolicyTimeSpec
from uvmsim.mechanisms import mechanism
from uvmsim.policies.registry import parse


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


# ---- [policy_ns] of a machine's description ---------------------------------------------------------


def described(hw, **decode):
    """The machine with so many ns a decode token by policy, and a tenth of that a prefill token."""
    times = {
        name.replace("_", "-"): PolicyTimeSpec(decode_ns=ns, prefill_ns=ns // 10, source="made up")
        for name, ns in decode.items()
    }
    return replace(hw, policy_ns=times)


@pytest.mark.parametrize("kind", ["expert-cache", "hybrid"])
def test_the_descriptions_time_delays_each_layer_by_its_tokens(job, kind):
    hw = described(job.hardware, learned=1000, learned_next=500)
    for policy, each in (("learned", 1000), ("learned+learned-next", 1500)):
        asked = replace(job, policy=parse(policy))
        plain = mechanism(kind).plan(asked)
        told = mechanism(kind).plan(replace(asked, hardware=hw))
        w = job.workload
        phase = w.step_phase[w.event_step]
        want = np.where(phase == 1, each, each // 10) * w.event_tokens
        first = np.concatenate(([True], np.diff(plain.wave_event) != 0))
        assert (told.pre_ns - plain.pre_ns == np.where(first, want[plain.wave_event], 0)).all()
        assert told.counters.hits == plain.counters.hits and told.policy_ns is None
        note = f"{each * 4 / 1e3:,.1f} us a decode token more than lru's on the host of"
        assert any(note in x for x in told.notes) and len(told.notes) == len(plain.notes) + 1


def test_what_the_description_does_not_know_takes_no_time_and_is_said(job):
    hw = described(job.hardware, learned=1000)
    cache = mechanism("expert-cache")
    asked = replace(job, policy=parse("learned+next-layer"))
    plain, told = cache.plan(asked), cache.plan(replace(asked, hardware=hw))
    assert (told.pre_ns == plain.pre_ns).all()
    assert "has no host time of it in [policy_ns]" in told.notes[0]
    bound = cache.plan(replace(job, policy=parse("belady"), hardware=hw))
    assert bound.notes == []


def test_a_users_policy_of_a_known_name_is_another(job, tmp_path):
    text = "from uvmsim.policies.lru import LRU\n\n\nclass Mine(LRU):\n    name = 'learned'\n"
    (tmp_path / "mine.py").write_text(text)
    hw = described(job.hardware, learned=1000)
    mine = parse(f"{tmp_path}/mine.py:Mine")
    assert hook_time.told_hook_time(replace(job, policy=mine, hardware=hw)) is None


def test_measuring_comes_before_the_description(job, monkeypatch):
    told = hook_time.HookTime(prefill=7.0, decode=70.0)
    monkeypatch.setattr("uvmsim.mechanisms.expert_cache.hook_time", lambda job: told)
    cache = mechanism("expert-cache")
    timed = replace(job, policy_time=True)
    both = cache.plan(replace(timed, hardware=described(job.hardware, learned=1000)))
    assert (both.pre_ns == cache.plan(timed).pre_ns).all() and len(both.notes) == 1


def test_another_machines_description_is_its_own(job):
    slow, quick = described(job.hardware, learned=5000), described(job.hardware, learned=1000)
    cache = mechanism("expert-cache")
    for before, after in ((slow, quick), (job.hardware, quick), (slow, job.hardware)):
        first = cache.run(replace(job, hardware=before), "fast", False)
        again = cache.again(first, replace(job, hardware=after))
        fresh = cache.run(replace(job, hardware=after), "fast", False)
        assert again.speeds() == fresh.speeds()
        assert again.trail.plan.notes == fresh.trail.plan.notes


def test_a_description_keeps_them_and_they_make_another_cell(tmp_path):
    plain = Hardware.load("h100")
    hw = described(plain, learned=1234)
    path = tmp_path / "mine.toml"
    path.write_text(hw.to_toml())
    back = Hardware.load(str(path))
    assert back.policy_ns == hw.policy_ns and back.numbers() == hw.numbers() != plain.numbers()
    assert ("policy_ns.learned.decode_ns", "1.23 µs", "made up") in back.quantities()
    (tmp_path / "based.toml").write_text('base = "mine.toml"\n')
    assert Hardware.load(str(tmp_path / "based.toml")).policy_ns == hw.policy_ns
    assert "policy_ns" not in plain.to_json() and plain.policy_ns is None
    asked = uvmsim.Scenario(policies=["lru"], slots=64, limit=780)
    cells = [
        uvmsim.sweep(asked.with_(hardware=h), {"link": ["55GB/s"]}).table()["cell"].to_pylist()
        for h in ("h100", str(path))
    ]
    assert cells[0] != cells[1]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("decode_ns = -5\nprefill_ns = 1\nsource = 'x'", "policy_ns.learned.decode_ns"),
        ("decode_ns = 5\nsource = 'x'", "policy_ns.learned.prefill_ns"),
        ("decode_ns = 5\nprefill_ns = 1\nsource = ''", "policy_ns.learned.source"),
        ("decode_ns = 5\nprefill_ns = 1\nsource = 'x'\nns = 3", "policy_ns.learned.ns"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, table, said):
    path = tmp_path / "bad.toml"
    path.write_text(f'base = "h100"\n[policy_ns.learned]\n{table}\n')
    with pytest.raises(InputError) as err:
        Hardware.load(str(path))
    assert said in str(err.value) and "\n" not in str(err.value) and "bad.toml" in str(err.value)
