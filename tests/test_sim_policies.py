"""Every policy against the slow reference in `naive`: each hit, counter, copy and wave equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import naive
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import Case, assert_same, cases, generate, naive_of, plan_of, settings_for

from uvmsim.experts import decisions

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
    "lru+next-layer:n=4:window=2000",
    "lfu+previous-token:window=900",
    "lru+oracle:horizon=3:window=4000",
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
        monkeypatch.setattr(decisions, "ROOM", 1)
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
            case = generate(len(done), scores=True, missing=0.1, sequences=2, decode=5,
                            guesses=True)
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


# ---- real traces -----------------------------------------------------------------------------------


def real(shared_data: Path, tmp_path: Path, file: str, model: str) -> Case:
    """A real dump, brought in by the product's importer and read back as plain rows."""
    from click.testing import CliRunner

    from traces.commands.trace import trace as trace_command
    from traces.routing import open_routing

    path = tmp_path / "real.arrow"
    arguments = ["import", str(shared_data / "routing" / file), "-o", str(path)]
    result = CliRunner().invoke(trace_command, [*arguments, "--model-name", model])
    assert result.exit_code == 0, result.output
    t = open_routing(path)
    columns = (t.seq, t.pos, t.step, t.phase, t.layer, t.experts)
    rows = [
        naive.Row(*plain, None if ids[0] < 0 else [e for e in ids if e >= 0])
        for *plain, ids in zip(*(c.tolist() for c in columns), strict=True)
    ]
    return Case(rows, t.layers, t.n_experts, t.top_k)


def fast_naive(case: Case, slots: int, kind: str) -> list[int]:
    """LRU or MIN over the events of a long trace with one pool: the hit of every access.

    The rules of `naive` again, with an ordered dictionary where `naive` searches lists, since it
    would take hours here. It shares no code with it.
    """
    from collections import OrderedDict, defaultdict

    events: list[list[tuple[int, int]]] = []
    last = None
    for r in case.rows:
        if last != (r.step, r.layer):
            events.append([])
            last = (r.step, r.layer)
        for e in r.experts or []:
            if (r.layer, e) not in events[-1]:
                events[-1].append((r.layer, e))
    uses = defaultdict(list)
    for i, e in enumerate(e for ev in events for e in ev):
        uses[e].append(i)
    for future in uses.values():
        future.reverse()
    resident: OrderedDict = OrderedDict()
    hit = []
    for ev in events:
        before = set(resident)
        for e in ev:
            uses[e].pop()
            hit.append(int(e in before))
            if e in resident:
                resident.move_to_end(e)
                continue
            if len(resident) == slots:
                free = (x for x in resident if x not in ev)
                victim = next(free) if kind == "lru" else max(
                    free, key=lambda x: uses[x][-1] if uses[x] else 10**12
                )  # fmt: skip
                del resident[victim]
            resident[e] = None
    return hit


@pytest.mark.shared_data
def test_gpqa_main_lru_at_192_slots_to_the_last_hit(shared_data, tmp_path):
    case = real(shared_data, tmp_path, "gpt-oss-20b/gpqa_main.npz", "gpt-oss-20b")
    plan = plan_of(case, "lru", slots=192)
    want = fast_naive(case, 192, "lru")
    assert len(want) == 12_186 * 24 * 4
    assert plan.counters.hits == sum(want)
    assert plan.hit.tolist() == want


@pytest.mark.shared_data
@pytest.mark.parametrize("slots", [96, 300])
def test_polyglot_with_every_policy(shared_data, tmp_path, slots):
    """The beginning with `naive` itself, every eviction policy and every prefetcher."""
    whole = real(shared_data, tmp_path, "gpt-oss-20b/polyglot.npz", "gpt-oss-20b")
    profile = replace(whole, rows=whole.rows[400 * 24 : 430 * 24])
    for policy in (*EVICTIONS, *COMBINED):
        # Belady in `naive` searches the whole future for every candidate.
        tokens = 14 if "belady" in policy else 40
        case = replace(whole, rows=whole.rows[: tokens * 24])
        learns = profile if "static-pin" in policy or "next-layer" in policy else None
        compare(case, policy, learns, slots=slots)


@pytest.mark.shared_data
@pytest.mark.parametrize("kind", ["lru", "belady"])
@pytest.mark.parametrize(
    ("file", "model", "slots"),
    [
        ("gpt-oss-20b/polyglot.npz", "gpt-oss-20b", 192),
        ("olmoe-1b-7b/trace_olmoe_299.jsonl", "olmoe-1b-7b", 256),
        ("glm-4.5-air/glm45air_routing.jsonl", "glm-4.5-air", 1440),
    ],
)
def test_whole_real_traces(shared_data, tmp_path, file, model, slots, kind):
    case = real(shared_data, tmp_path, file, model)
    plan = plan_of(case, kind, slots=slots)
    assert plan.hit.tolist() == fast_naive(case, slots, kind)


@pytest.mark.shared_data
def test_min_one_by_one_is_the_textbook_min(shared_data, tmp_path):
    """``--unit access`` on 300 tokens against a MIN that knows nothing of events."""
    whole = real(shared_data, tmp_path, "gpt-oss-20b/polyglot.npz", "gpt-oss-20b")
    case = replace(whole, rows=whole.rows[: 300 * 24])
    stream = [(r.layer, e) for r in case.rows for e in r.experts]
    upcoming: list[float] = []
    seen: dict = {}
    for i in range(len(stream) - 1, -1, -1):
        upcoming.append(seen.get(stream[i], float("inf")))
        seen[stream[i]] = i
    upcoming.reverse()
    for slots in (4, 96, 300):
        cache: dict = {}
        misses = 0
        for e, nxt in zip(stream, upcoming, strict=True):
            if e not in cache:
                misses += 1
                if len(cache) == slots:
                    del cache[max(cache, key=cache.__getitem__)]
            cache[e] = nxt
        assert plan_of(case, "belady", slots=slots, unit="access").counters.misses == misses
