"""Every policy against the slow reference in `naive`: each hit, counter, copy and wave equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import naive
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import Case, assert_same, cases, generate, naive_of, plan_of, settings_for

from uvmsim.memory import expert_cache

HERE = Path(__file__).parent

EVICTIONS = sorted(naive.EVICT)
COMBINED = (
    "lru+previous-token",
    "lru+next-layer",
    "lru+oracle",
    "clock+next-layer:n=3",
    "lfuda+previous-token:n=5",
    "least-stale+next-layer",
    "layer-lru+previous-token",
    "belady+oracle:horizon=3",
    "belady-horizon:horizon=1+next-layer",
    "random+oracle:horizon=2:budget=3000",
    "static-pin+next-layer:online=false",
)
QUICK = settings(max_examples=40, deadline=None)


def compare(case: Case, policy: str, profile: Case | None = None, **how) -> None:
    assert_same(case, plan_of(case, policy, profile, **how), naive_of(case, policy, profile, **how))


def profile_for(case: Case, seed: int) -> Case:
    """Another trace of the same model."""
    return generate(
        seed, len(case.layers), case.n_experts, case.top_k, first_block=case.layers[0], missing=0.1
    )


@pytest.mark.parametrize("policy", [*EVICTIONS, *COMBINED])
def test_equals_reference(policy):
    @QUICK
    @given(st.data())
    def check(data):
        case = data.draw(cases())
        how = data.draw(settings_for(case))
        learns = "static-pin" in policy or (
            "next-layer" in policy and data.draw(st.booleans(), "profile")
        )
        profile = profile_for(case, data.draw(st.integers(0, 99))) if learns else None
        compare(case, policy, profile, **how)

    check()


@QUICK
@given(st.data())
def test_score_rank_equals_reference(data):
    case = data.draw(cases(scores=True))
    compare(case, "lru+score-rank", **data.draw(settings_for(case, units=("event",))))


@pytest.mark.parametrize("policy", ["static-pin:scratch=3", "belady-horizon:horizon=2"])
def test_parameters_reach_the_policy(policy):
    @QUICK
    @given(st.data())
    def check(data):
        case = data.draw(cases())
        profile = profile_for(case, 1) if "pin" in policy else None
        compare(case, policy, profile, **data.draw(settings_for(case)))

    check()


@pytest.mark.parametrize("policy", ["lru", "lru+next-layer", "random+oracle:horizon=2:budget=3000"])
def test_a_small_block_changes_nothing(policy, monkeypatch):
    """The kernel is called again and again with little room: same plan."""
    case = generate(5, layers=4, experts=10, top_k=3, sequences=3, prefill=6)
    for write_back in (False, True):
        how = {"slots": 11, "reset": "sequence", "write_back": write_back}
        monkeypatch.setattr(expert_cache, "BLOCK", 1)
        compare(case, policy, **how)


def test_wider_than_the_pool_by_hand():
    """Five experts in a pool of two: waves {0 1} {2 3} {4}; each wave evicts the one before."""
    rows = [naive.Row(0, t, 0, 0, 0, [e]) for t, e in enumerate((0, 1, 2, 3, 4))]
    rows += [naive.Row(0, 5, 1, 1, 0, [4]), naive.Row(0, 6, 2, 1, 0, [3]),
             naive.Row(0, 7, 3, 1, 0, [2])]  # fmt: skip
    case = Case(rows, (0,), 6, 1)
    plan = plan_of(case, "lru", slots=2)
    assert plan.hit.tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    assert plan.wave_hi.tolist() == [2, 4, 5, 6, 7, 8]
    assert plan.counters.evictions == 4
    assert_same(case, plan, naive_of(case, "lru", slots=2))


def test_event_and_access_differ_as_they_should():
    """Two slots, LRU, layers {0 1} then {2 0}: as an event 2 may not push out 0, one by one it does."""
    rows = [naive.Row(0, 0, 0, 1, 0, [0, 1]), naive.Row(0, 1, 1, 1, 0, [2, 0])]
    case = Case(rows, (0,), 3, 2)
    assert plan_of(case, "lru", slots=2).hit.tolist() == [0, 0, 0, 1]
    assert plan_of(case, "lru", slots=2, unit="access").hit.tolist() == [0, 0, 0, 0]


JIT_OFF = """
import json, sys
from routing import assert_same, generate, naive_of, plan_of
import naive
done = []
for evict in sorted(naive.EVICT):
    for fetch in ("", *("+" + f for f in sorted(naive.FETCH))):
        for pool, slots in (("global", 7), ("per-layer", 9)):
            case = generate(len(done), scores=True, missing=0.1, sequences=2, decode=5)
            profile = generate(1000, decode=5)
            how = dict(pool=pool, slots=slots, write_back=pool == "global", reset="sequence")
            policy = evict + fetch
            assert_same(case, plan_of(case, policy, profile, **how),
                        naive_of(case, policy, profile, **how))
            done.append(policy)
print(json.dumps(done))
"""


def test_every_combination_without_the_compiler():
    """All eviction policies with all prefetchers, their kernels run as plain Python."""
    env = os.environ | {
        "NUMBA_DISABLE_JIT": "1",
        "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE))),
        "PYTHONWARNINGS": "ignore",  # NumPy's scalar integers warn where they wrap around
    }
    done = subprocess.run(
        [sys.executable, "-c", JIT_OFF], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout)) == 2 * len(naive.EVICT) * (1 + len(naive.FETCH))
