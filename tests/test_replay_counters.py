"""A replay makes the simulator's decisions, whatever the mode, and computes the right outputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import cases, generate, settings_for

from replay.backend.host import HostBackend
from replay.decide import CachePolicy
from replay.results import verified
from replay.session import How, Session
from replay.study import COMPARED
from traces.errors import InputError
from uvmsim.machine.hardware import Hardware
from uvmsim.mechanisms import mechanism
from uvmsim.runs.plan import DEMAND, PREFETCH
from uvmsim.studies.simulate import simulate

POLICIES = ("lru", "lfu", "fifo", "belady", "lru+next-layer", "lfu+previous-token",
            "belady+oracle", "llama-cpp-lru", "random")  # fmt: skip
FAST = How(dtype="fp32")
ASKING = f"{Path(__file__).parent / 'asking.py'}:Asking"
QUICK_CPU = Hardware.load("rtx5090")
QUICK_CPU = dataclasses.replace(
    QUICK_CPU,
    engine=dataclasses.replace(
        QUICK_CPU.engine, cpu_sync_ns=0, cpu_bytes_per_s=200_000_000, terms=None
    ),
)
"""So that experts of a thousand bytes are worth the CPU's while."""


def known(policies=POLICIES):
    from uvmsim.policies.registry import builtin

    return [p for p in policies if all(part in builtin() for part in p.split("+"))]


def assert_same_row(run, mode):
    got, want = run.to_json(), simulate(run.job, mode).to_json()
    assert verified(run), run.problems
    for key in COMPARED:
        assert got[key] == want[key], key
    for key in ("issued", "wasted"):
        assert got["prefetch"][key] == want["prefetch"][key]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_expert_cache_counts_and_computes_as_simulated(data):
    case = data.draw(cases())
    how = data.draw(settings_for(case))
    policy = data.draw(st.sampled_from(known()))
    shuffle = data.draw(st.one_of(st.none(), st.integers(0, 1000)))
    pace = dataclasses.replace(
        FAST, split=data.draw(st.integers(1, 3)), ahead=data.draw(st.integers(0, 3)),
        detail=data.draw(st.booleans()),
    )  # fmt: skip
    pieces = data.draw(st.sampled_from((0, 100, 1000)))
    job = case.job(policy, profile=case.workload(), prefetch_pieces=pieces, **how)
    with Session(HostBackend(shuffle=shuffle), pace) as session:
        assert_same_row(session.run(job), "expert-cache")


@settings(max_examples=15, deadline=None)
@given(case=cases(), write_back=st.booleans(), seed=st.integers(0, 99))
def test_modes_without_a_policy_count_as_simulated(case, write_back, seed):
    job = case.job(write_back=write_back)
    with Session(HostBackend(shuffle=seed), FAST) as session:
        for mode in ("resident", "stream", "zero-copy"):
            assert_same_row(session.run(job, mode), mode)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_each_copy_gets_the_slot_the_simulator_gave_it(data):
    case = data.draw(cases())
    how = data.draw(settings_for(case))
    policy = data.draw(st.sampled_from(known()))
    job = case.job(policy, profile=case.workload(), **how)
    plan = mechanism("expert-cache").plan(job)
    decisions = CachePolicy(job)
    waves = [w for step in decisions.steps() for w in step]
    assert [w.hi for w in waves] == plan.wave_hi.tolist()
    moves = [m for w in waves for m in [*w.demand, *w.prefetch]]
    kinds = [k for w in waves for k in [DEMAND] * len(w.demand) + [PREFETCH] * len(w.prefetch)]
    mine = [k for k in plan.copy_kind.tolist() if k in (DEMAND, PREFETCH)]
    assert kinds == mine
    # Follow the slots: who is where, and that each access finds its expert.
    content: dict[int, int] = {}
    for w in waves:
        for e, slot in w.leaving:
            assert content.pop(slot) == e
        for e, slot in w.demand:
            assert slot >= decisions.slots or slot not in content or how["reset"] == "sequence"
            content[slot] = e
        ids = job.workload.ids[w.lo : w.hi].tolist()
        assert [content[s] for s in w.slots.tolist()] == ids
        for e, slot in w.prefetch:
            content[slot] = e
    assert all(0 <= s < decisions.slots + decisions.beside for _, s in moves)
    assert decisions.counters().resident_at_end == plan.counters.resident_at_end


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "mxfp4"])
def test_every_weight_type_is_verified(dtype):
    case = generate(5)
    job = dataclasses.replace(case.job("lru", slots=5), model=case.model.scaled(4000))
    with Session(HostBackend(shuffle=1), How(dtype=dtype)) as session:
        run = session.run(job)
    assert verified(run)
    assert run.trail.options["dtype"] == dtype


def test_paging_keeps_the_caches_budget():
    case = generate(7, layers=2)
    job = case.job("lru+previous-token", slots=5)
    with Session(HostBackend(shuffle=3), FAST) as session:
        for how in (FAST, dataclasses.replace(FAST, managed_on_demand=True, advice="read-mostly")):
            run = session.run(job, "uvm", how)
            want = simulate(job).to_json()
            assert verified(run)
            assert run.to_json()["hits"] == want["hits"]
        assert verified(session.run(case.job(), "uvm")), "no policy: faults alone"


def test_times_are_per_step_and_waiting_is_part_of_them():
    case = generate(11, decode=6)
    with Session(HostBackend(), FAST) as session:
        run = session.run(case.job("lru", slots=4))
    m = run.trail.measured
    assert len(run.step_ns) == case.workload().n_steps
    assert (run.step_ns > 0).all()
    assert (m.stall_ns <= run.step_ns).all()
    assert (m.transfer_ns <= m.stall_ns).all()
    d = run.to_json()
    assert d["time_s"] == pytest.approx(run.step_ns.sum() / 1e9)
    assert d["token_latency_ms"]["p50"] > 0
    assert sum(d["time_split_s"].values()) == pytest.approx(d["time_s"])


def test_a_session_gives_back_what_it_took():
    case = generate(2)
    backend = HostBackend()
    with Session(backend, FAST) as session:
        session.run(case.job("lru", slots=4))
        held = backend.live_bytes
        for mode in ("expert-cache", "resident", "stream", "expert-cache"):
            session.run(case.job("lru", slots=4), mode)
        assert backend.live_bytes == held, "runs leave the bank and the buffers, nothing else"
    assert backend.live_bytes == 0


def test_a_small_bank_is_shared_and_says_so():
    case = generate(2)
    job = case.job("lru", slots=6)
    with Session(HostBackend(shuffle=0), dataclasses.replace(FAST, bank_limit=8000)) as session:
        run = session.run(job)
    assert verified(run)
    assert run.trail.options["shared_images"]
    assert any("share" in note for note in run.notes)
    assert_same_row(run, "expert-cache")


def test_the_same_seed_makes_the_same_bytes_and_hashes():
    case = generate(2)
    sums = []
    for seed in (4, 4, 5):
        with Session(HostBackend(), FAST) as session:
            session.run(case.job("lru", slots=6, seed=seed))
            (bank,) = session._banks.values()
            sums.append((bank.sums.copy(), bank.expected.copy()))
            used = bank.known
            assert len(np.unique(bank.sums[used])) == used.sum(), "experts differ"
    assert (sums[0][0] == sums[1][0]).all()
    assert (sums[0][1] == sums[1][1]).all()
    assert (sums[0][0] != sums[2][0]).any()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_what_becomes_of_misses_is_replayed(data):
    """Scratch places, the CPU's share, copies behind: counters, outputs and bytes are right,
    whatever the order of the streams."""
    case = data.draw(cases())
    how = data.draw(settings_for(case))
    policy = data.draw(
        st.sampled_from(("lru:bypass=1", "belady:bypass=1+previous-token", "lru", ASKING))
    )
    mode = data.draw(st.sampled_from(("expert-cache", "hybrid")))
    how["behind"], how["pinned"] = data.draw(st.booleans()), data.draw(st.booleans())
    if policy != "lru":
        how["write_back"], how["scratch"] = False, data.draw(st.integers(1, 4))
    shuffle = data.draw(st.one_of(st.none(), st.integers(0, 1000)))
    pace = dataclasses.replace(
        FAST, ahead=data.draw(st.integers(0, 3)), detail=data.draw(st.booleans())
    )
    job = case.job(policy, profile=case.workload(), hardware=QUICK_CPU, **how)
    with Session(HostBackend(shuffle=shuffle), pace) as session:
        run = session.run(job, mode)
    assert_same_row(run, mode)
    assert run.to_json().get("misses_by") == simulate(job, mode).to_json().get("misses_by")


def test_the_cpu_computes_its_share():
    case = generate(5, layers=3, experts=8, top_k=3)
    job = case.job("lru", slots=6, hardware=QUICK_CPU)
    with Session(HostBackend(shuffle=2), FAST) as session:
        run = session.run(job, "hybrid")
        assert verified(run)
        by = run.to_json()["misses_by"]
        assert by["cpu"] > 0 and by["insert"] > 0
        assert run.to_json()["cpu_s"] > 0
        # A wrong result of the CPU voids a run.
        (bank,) = session._banks.values()
        bank.cpu_rows[:] ^= np.uint64(1)
        run = session.run(job, "hybrid")
    assert not verified(run)
    assert "results of the CPU differ" in run.problems[0]


def test_managed_memory_takes_no_policy_that_keeps_misses_out():
    case = generate(2)
    with (
        Session(HostBackend(), FAST) as session,
        pytest.raises(InputError, match="expert-cache"),
    ):
        session.run(case.job("lru:bypass=1", slots=6), "managed")
