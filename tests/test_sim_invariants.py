"""What must hold of every run, whatever the policy (INVARIANTS.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import cases, generate, naive_of, plan_of, settings_for

from traces.errors import InputError
from uvmsim.clocks import fast
from uvmsim.policies.registry import parse
from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK
from uvmsim.studies.simulate import check_needs, simulate

ROOT = Path(__file__).resolve().parents[1]
# llama-cpp-lru passes large batches by, which no policy that must insert can match.
ONLINE = sorted(set(naive.EVICT) - {"belady", "static-pin", "llama-cpp-lru"})
PAIRS = ("lru+next-layer", "lru+oracle", "lru+previous-token", "belady+oracle:horizon=3")
QUICK = settings(max_examples=30, deadline=None)


@QUICK
@given(st.data())
def test_belady_is_the_lower_bound(data):
    """Of all policies without prefetch, with the same pool, event by event as well as one by one."""
    case = data.draw(cases())
    how = data.draw(settings_for(case))
    least = plan_of(case, "belady", **how).counters.misses
    for policy in ONLINE:
        assert plan_of(case, policy, **how).counters.misses >= least, policy
    pinned = plan_of(case, "static-pin", profile=case, **how)
    assert pinned.counters.misses >= least


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_belady_equals_the_best_of_all_choices(seed, slots):
    """On tiny traces: no sequence of evictions at all does better, event rules included."""
    case = generate(
        seed, layers=1, experts=6, top_k=2, sequences=1, decode=7, prefill=3, missing=0.0
    )
    events = [tuple(ev.experts) for ev in naive.events_of(case.rows, "event")]

    def best(resident: frozenset, i: int, memo: dict) -> int:
        if i == len(waves):
            return 0
        if (resident, i) not in memo:
            wave = frozenset(waves[i])
            missing = wave - resident
            memo[resident, i] = len(missing) + min(
                best(keep | wave, i + 1, memo)
                for keep in choices(resident - wave, slots - len(wave))
            )
        return memo[resident, i]

    def choices(others: frozenset, room: int):
        # Who may stay: any subset that fits; evicting more than needed never helps.
        from itertools import combinations

        return map(frozenset, combinations(sorted(others), min(room, len(others))))

    waves = [ev[i : i + slots] for ev in events for i in range(0, len(ev), slots)]
    assert plan_of(case, "belady", slots=slots).counters.misses == best(frozenset(), 0, {})


@QUICK
@given(st.data())
def test_lru_misses_never_rise_with_capacity(data):
    """Inclusion (Mattson et al. 1970): what a pool holds, a larger one holds too."""
    case = data.draw(cases())
    last = None
    for slots in range(1, len(case.layers) * case.n_experts + 1, 2):
        hit = plan_of(case, "lru", slots=slots, unit="access").hit
        if last is not None:
            assert (hit >= last).all()
        last = hit


@pytest.mark.parametrize("policy", ["lru", "random", *PAIRS])
def test_bytes_and_slots_are_conserved(policy):
    @QUICK
    @given(st.data())
    def check(data):
        case = data.draw(cases())
        how = data.draw(settings_for(case)) | {"reset": "never"}
        result = simulate(case.job(policy, **how))
        plan, row = result.trail.plan, result.to_json()
        c = plan.counters
        n = {k: int((plan.copy_kind == k).sum()) for k in (DEMAND, PREFETCH, WRITEBACK)}
        assert n[DEMAND] == c.misses == c.accesses - c.hits
        assert n[PREFETCH] == c.prefetch_issued == c.prefetch_used + c.prefetch_wasted
        assert n[WRITEBACK] == (c.evictions if how["write_back"] else 0)
        assert n[DEMAND] + n[PREFETCH] - c.evictions == c.resident_at_end <= how["slots"]
        parts = row["prefetch"]
        assert parts["useful"] + parts["late"] + parts["wasted"] == parts["issued"]
        assert row["hits"] + row["misses"] == row["accesses"] == len(plan.hit)
        assert row["bytes_h2d"] == int(plan.copy_bytes[plan.copy_kind != WRITEBACK].sum())
        assert row["bytes_d2h"] == int(plan.copy_bytes[plan.copy_kind == WRITEBACK].sum())
        assert int(c.layer_hits.sum()) == c.hits and int(c.layer_accesses.sum()) == c.accesses
        split = row["time_split_s"]
        assert sum(split.values()) == pytest.approx(row["time_s"], abs=1e-9 * len(plan.pre_ns))

    check()


@pytest.mark.parametrize("policy", ["lru", "lru+oracle"])
def test_one_size_of_expert_means_copies_times_size(policy):
    case = generate(8, layers=3, experts=8, top_k=2, decode=20)
    job = case.job(policy, slots=9, write_back=True)
    job = replace(job, model=replace(job.model, expert_bytes=(5000,) * 3))
    row = simulate(job).to_json()
    assert row["bytes_h2d"] == 5000 * (row["misses"] + row["prefetch"]["issued"])
    assert row["bytes_d2h"] == 5000 * row["evictions"]


@QUICK
@given(st.data())
def test_residency_never_exceeds_the_pool(data):
    """Seen from outside: replaying the copies, no slot count is ever exceeded, in either pool kind."""
    case = data.draw(cases())
    how = data.draw(settings_for(case)) | {"write_back": True, "reset": "never"}
    policy = data.draw(st.sampled_from(("lru", "random", "clock", *PAIRS)))
    # `assert_same` in test_sim_policies ties the product's copies to the reference's, which
    # counts residents after every single insertion.
    want = naive_of(case, policy, **how)
    assert want.most_resident <= how["slots"]
    inside, plan = 0, plan_of(case, policy, **how)
    for kind in plan.copy_kind.tolist():
        inside += -1 if kind == WRITEBACK else 1
        assert 0 <= inside <= how["slots"]
    assert inside == plan.counters.resident_at_end == want.resident


@pytest.mark.parametrize("policy", ["lru", "lru+next-layer"])
def test_the_clock_is_monotonic(policy):
    @QUICK
    @given(st.data())
    def check(data):
        case = data.draw(cases())
        plan = simulate(case.job(policy, **data.draw(settings_for(case)))).trail.plan
        t = fast.run(plan)
        assert (np.diff(t.step_end, prepend=0) >= 0).all()
        assert (t.wave_ready >= t.wave_open).all()
        assert (np.diff(t.wave_open) >= 0).all()
        assert (t.copy_done - t.copy_start == plan.copy_ns).all()
        # No engine does two things at once.
        for way in (plan.copy_kind == WRITEBACK, plan.copy_kind != WRITEBACK):
            order = np.argsort(t.copy_start[way])
            assert (t.copy_start[way][order][1:] >= t.copy_done[way][order][:-1]).all()
        after = plan.copy_after >= 0
        assert (t.copy_start[after] >= t.copy_done[plan.copy_after[after]]).all()

    check()


def test_same_seed_same_bytes(tmp_path):
    """Two processes, byte-identical standard output; another seed, another random run."""
    path = tmp_path / "t.arrow"
    generate(2, layers=3, experts=8, top_k=2, decode=30, scores=True).trace.save(path)

    def run(seed: int) -> bytes:
        command = [
            sys.executable, "-c",
            "from uvmsim.cli import main; main()", "compare", str(path), "--slots", "8,16",
            "--policy", "random,lru,lru+next-layer", "--seed", str(seed), "--json",
        ]  # fmt: skip
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=env, capture_output=True, check=True).stdout

    first = run(1)
    assert first == run(1)
    assert first != run(2)


# ---- what a policy is given ------------------------------------------------------------------------

FUTURE = ("next_use", "first_use", "step_of", "future_ids", "event_lo")

SPY = """
from uvmsim.policies.base import Eviction, Nothing, Prefetch, in_use
import numpy as np

SEEN = []


def look(ctx):
    SEEN.append({k: getattr(ctx, k) is not None for k in FUTURE})
    return Nothing(np.zeros(1, np.int64))


class Blind(Eviction):
    def state(self, ctx):
        return look(ctx)

    @staticmethod
    def victim(s, pool, p):
        for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
            if not in_use(pool, pool.expert_in[slot]):
                return pool.expert_in[slot]
        return -1


class Seer(Blind):
    needs = frozenset({"next_use"})


class BlindFetch(Prefetch):
    def state(self, ctx):
        return look(ctx)


class Profiled(Blind):
    needs = frozenset({"profile"})


class Scored(Blind):
    needs = frozenset({"router_scores"})


class Ranked(Blind):
    needs = frozenset({"ranked_ids"})
"""


@pytest.fixture(scope="module")
def spy(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("spy") / "spy.py"
    path.write_text(f"FUTURE = {FUTURE!r}\n{SPY}")
    return str(path)


@pytest.mark.parametrize(
    ("policy", "sees"),
    [
        ("{f}:Blind", [False]),
        ("{f}:Seer", [True]),
        ("{f}:Blind+oracle", [False]),
        ("belady+{f}:BlindFetch", [False]),
    ],
)
@pytest.mark.parametrize("reset", ["never", "sequence"])
def test_the_future_is_shown_to_declared_oracles_only(spy, policy, sees, reset):
    spec = parse(policy.format(f=spy))
    module = sys.modules[
        next(
            type(p).__module__
            for p in (spec.eviction, spec.prefetch)
            if p and type(p).__module__.startswith("uvmsim_user_")
        )
    ]
    module.SEEN.clear()
    case = generate(1)
    plan_of(case, policy.format(f=spy), slots=6, reset=reset)
    assert module.SEEN
    for seen in module.SEEN:
        assert seen == dict.fromkeys(FUTURE, sees[0])


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        ("static-pin", "`profile`"),
        ("{f}:Profiled", "`profile`"),
        ("lru+score-rank", "scores"),
        ("{f}:Scored", "scores"),
        ("{f}:Ranked", "rank"),
    ],
)
def test_unmet_needs_are_refused_in_one_sentence(spy, policy, word):
    case = generate(1)
    trace = case.trace
    trace.meta = replace(trace.meta, ids_order="sorted")
    job = case.job(policy.format(f=spy), slots=6)
    with pytest.raises(InputError) as e:
        check_needs(job, trace)
    assert word in str(e.value) and "\n" not in str(e.value)


def test_met_needs_pass(spy):
    case = generate(1, scores=True)
    profile = case.workload()
    for policy in ("static-pin", "lru+score-rank", f"{spy}:Ranked", "belady"):
        check_needs(case.job(policy, slots=6, profile=profile), case.trace)


def test_scores_of_single_accesses_do_not_exist():
    """A score row belongs to a token's whole layer: with --unit access it is refused, not faked."""
    case = generate(1, scores=True)
    with pytest.raises(InputError, match="leave out `unit` access"):
        check_needs(case.job("lru+score-rank", slots=6, unit="access"), case.trace)
