"""Several models on one GPU: hits against a slow LRU over forward passes in turn, budgets against each
model alone with its share, times against being alone."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import generate

from traces.errors import InputError
from uvmsim.experts.decisions import Decisions
from uvmsim.experts.knowledge import context
from uvmsim.experts.tenants import own_jobs, steps_in_turn, tenant_of, together
from uvmsim.machine.hardware import Hardware
from uvmsim.mechanisms import mechanism
from uvmsim.runs.job import Tenants
from uvmsim.studies.simulate import simulate

H100 = Hardware.load("h100")


def jobs_of(seed: int, policy: str = "lru", slots: int = 14, budget=None, **more):
    """Two models of other shapes, one each and both."""
    a = generate(seed, layers=3, experts=8, top_k=2, missing=0.1 * (seed % 2))
    b = generate(seed + 1, layers=2, experts=6, top_k=3, decode=5)
    alone = [x.job(policy, slots=slots, hardware=H100, **more) for x in (a, b)]
    tenants = Tenants(
        ("a", "b"), tuple(j.workload for j in alone), tuple(j.model for j in alone), budget
    )
    return alone, together(alone[0], tenants)


def slow_lru(alone, slots: int) -> list[list[int]]:
    """Hits of each access by tenant: whole events, whose own experts never leave for one another. For
    pools that hold any event."""
    ws = [j.workload for j in alone]
    resident: OrderedDict = OrderedDict()
    hits: list[list[int]] = [[] for _ in ws]
    for step in range(max(w.n_steps for w in ws)):
        for i, w in enumerate(ws):
            for e in np.flatnonzero(w.event_step == step).tolist():
                mine = [(i, int(x)) for x in w.ids[w.event_lo[e] : w.event_lo[e + 1]]]
                for x in mine:
                    hits[i].append(int(x in resident))
                    if x not in resident and len(resident) == slots:
                        del resident[next(y for y in resident if y not in mine)]
                    resident[x] = True
                    resident.move_to_end(x)
    return hits


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.integers(9, 24))
def test_one_pool_is_lru_over_passes_in_turn(seed, slots):
    alone, both = jobs_of(seed, slots=slots)
    assert both.workload.widest <= slots
    run = mechanism("neighbours").run(both)
    who, own = steps_in_turn([j.workload.n_steps for j in alone])
    of = both.workload.event_step[both.workload.access_event]
    for i, want in enumerate(slow_lru(alone, slots)):
        assert run.trail.plan.hit[who[of] == i].tolist() == want
    assert own.tolist() == sorted(own.tolist())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**16),
    st.sampled_from(("lru", "learned", "layer-lru", "lru+next-layer", "belady")),
    st.sampled_from((0.3, 0.5, 0.7)),
    st.sampled_from(("never", "sequence")),
)
def test_a_budget_each_is_each_alone_with_it(seed, policy, first, reset):
    alone, both = jobs_of(seed, policy, 20, (first, 1 - first), reset=reset)
    hit = mechanism("neighbours").run(both).trail.plan.hit
    slots = [j.slots for j in own_jobs(both)]
    who, _ = steps_in_turn([j.workload.n_steps for j in alone])
    of = both.workload.event_step[both.workload.access_event]
    for i, job in enumerate(alone):
        own = Decisions(replace(job, slots=slots[i]))
        own.serve_all()
        assert hit[who[of] == i].tolist() == own.hit.tolist()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**16),
    st.sampled_from(("lru", "learned", "lru+next-layer", "layer-lru")),
    st.sampled_from((None, (0.5, 0.5))),
    st.booleans(),
)
def test_both_clocks_agree_and_nothing_is_lost(seed, policy, budget, write_back):
    alone, both = jobs_of(seed, policy, 16, budget, write_back=write_back)
    runs = [mechanism("neighbours").run(both, clock) for clock in ("fast", "des")]
    assert runs[0].step_ns.tolist() == runs[1].step_ns.tolist()
    w = both.workload
    assert len(w.ids) == sum(len(j.workload.ids) for j in alone)
    owner = tenant_of(both.tenants)[w.ids]
    who, _ = steps_in_turn([j.workload.n_steps for j in alone])
    assert owner.tolist() == who[w.event_step[w.access_event]].tolist()
    seen = context(both, np.array([16]), np.zeros(len(owner), np.int32))
    assert seen.tenant_of.tolist() == tenant_of(both.tenants).tolist()
    told = runs[0].to_json()["tenants"]
    assert [t["name"] for t in told] == ["a", "b"]
    assert all(t["slowdown"] > t["own_slowdown"] > 0 for t in told)


def test_with_room_for_all_only_turns_cost():
    """Everything resident after its first use, in both: own passes take as long as alone."""
    alone, both = jobs_of(1, slots=100)
    told = simulate(both).to_json()["tenants"]
    assert [t["own_slowdown"] for t in told] == [1.0, 1.0]
    steps = min(j.workload.n_steps for j in alone)
    ns = [int(simulate(j).step_ns[:steps].sum()) for j in alone]
    for t, own in zip(told, ns, strict=True):
        assert t["slowdown"] == pytest.approx(sum(ns) / own)


def test_what_is_refused():
    _, both = jobs_of(1)
    with pytest.raises(InputError, match="one GPU"):
        simulate(replace(both, gpus=2))
    with pytest.raises(InputError, match="one model alone"):
        simulate(both, "hybrid")
    with pytest.raises(InputError, match="leave it out"):
        simulate(replace(both, prefetch_pieces=5))


def test_what_a_user_types(capsys):
    from traces.samples import BUNDLED
    from uvmsim import Scenario

    s = Scenario(
        str(BUNDLED), expert_size="13.2MB", neighbour=f"{BUNDLED}:share=40%", slots="25%",
        policies="lru", limit=900,
    )  # fmt: skip
    result = s.compare()
    (run,) = result
    assert run.to_json()["budget"] == [0.6, 0.4] and run.slots == 76 + 51
    result.show()
    assert "each against being alone" in capsys.readouterr().out
    for change, word in (
        ({"budget": "60%"}, "one a model"), ({"budget": "60%,60%"}, "more than all"),
        ({"budget": "x,y"}, "give a share"), ({"neighbour": f"{BUNDLED}:size=3"}, "model=M"),
        ({"neighbour": "nowhere.arrow"}, "no such trace"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=word):
            s.with_(**change).compare()
    import uvmsim

    with pytest.raises(InputError, match="one model"):
        uvmsim.replay(s, backend="host")
    with pytest.raises(InputError, match="give `neighbour`"):
        s.with_(neighbour=None, budget="shared")
