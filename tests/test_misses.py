"""What becomes of misses: against the slow reference in `naive_misses`, to the last copy and place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import naive
import naive_misses
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import KINDS, Case, cases, generate, settings_for

from traces.errors import InputError
from uvmsim.experts.cache_misses import cache_misses
from uvmsim.experts.decisions import Decisions
from uvmsim.experts.misses import Split
from uvmsim.policies.base import ACTIONS
from uvmsim.runs.job import DoesNotFit, Job, expert_slots

ASKING = str(Path(__file__).parent / "asking.py")
QUICK = settings(max_examples=30, deadline=None)
WORDS = ("offer", "insert", "scratch", "cpu", "cpu-behind")


def said_by_asking(layer: int, expert: int, access: int) -> str:
    return WORDS[(expert + 2 * layer) % 5]


def tables(split: naive_misses.Split, case: Case) -> Split:
    """The reference's split as the kernel takes it."""
    w = case.workload()
    layers, most = len(case.layers), int(w.counts.max(initial=1))
    return Split(
        np.array(split.copy, np.int64),
        np.array([[split.cpu(i, t) for t in range(most + 1)] for i in range(layers)], np.int64),
        np.array([split.sync], np.int64), np.array(split.idle or [], np.int64),
        np.zeros(1, np.int64), np.zeros(w.widest, np.int64),
    )  # fmt: skip


def served(job: Job, split: Split | None = None):
    """The product's decisions, all of them, and what they served."""
    decisions = Decisions(job, split)
    return decisions, decisions.serve_all()


def joined(parts, name: str) -> list:
    return np.concatenate([getattr(p, name) for p in parts]).tolist()


def assert_same(case: Case, decisions: Decisions, parts, want: naive_misses.Outcome) -> None:
    c = decisions.counters()
    assert decisions.hit.tolist() == want.hit
    assert {k: n for k, n in c.misses_by.items() if n} == want.by
    assert (c.hits, c.misses) == (sum(want.hit), sum(want.by.values()))
    assert (c.evictions, c.resident_at_end) == (want.evictions, want.resident)
    got = (c.prefetch_issued, c.prefetch_used, c.prefetch_wasted)
    assert got == (want.issued, want.used, want.wasted)
    missed = decisions.hit == 0
    assert [ACTIONS[a] for a in decisions.action[missed]] == [a for a in want.actions if a]
    assert not decisions.action[~missed].any()
    n = case.n_experts
    assert joined(parts, "copy_expert") == [e[0] * n + e[1] for _, e, _ in want.copies]
    assert [KINDS[k] for k in joined(parts, "copy_kind")] == [k for k, _, _ in want.copies]
    assert joined(parts, "copy_after") == [a for _, _, a in want.copies]
    assert joined(parts, "wave_hi") == [hi for hi, _, _ in want.waves]
    assert joined(parts, "wave_copy_hi") == [hi for _, hi, _ in want.waves]
    assert joined(parts, "waits") == [x for _, _, xs in want.waves for x in xs]
    if decisions.scratch:
        assert joined(parts, "copy_slot") == want.places
        assert decisions.slot.tolist() == [-1 if p is None else p for p in want.reads]


def assert_found(decisions: Decisions, parts) -> None:
    """Every access finds its expert where it reads, and no copy of a wave falls on what the wave
    reads."""
    content: dict[int, int] = {}
    ids = decisions.job.workload.ids.tolist()
    copies = list(zip(joined(parts, "copy_expert"), joined(parts, "copy_slot"), strict=True))
    access = copy = 0
    for hi, copy_hi in zip(joined(parts, "wave_hi"), joined(parts, "wave_copy_hi"), strict=True):
        for e, place in copies[copy:copy_hi]:
            content[place] = e
        for a in range(access, hi):
            place = int(decisions.slot[a])
            assert place < 0 or content[place] == ids[a]
        access, copy = hi, copy_hi
    assert all(0 <= p < decisions.slots + decisions.beside for p in content)


def both(case: Case, policy: str, how: dict, *, split=None, answer=None, named=None, **more):
    """Product and reference on the same question."""
    how = {k: v for k, v in how.items() if k != "write_back"}
    evict, _, fetch = policy.partition("+")
    name, *given_ = evict.split(":")
    want = naive_misses.simulate(
        case.rows, named or name, fetch or None, n_experts=case.n_experts, top_k=case.top_k,
        bytes_of=list(case.expert_bytes), scratch=how.get("scratch", 0), answer=answer, split=split,
        bypass="bypass=1" in given_,
        **{k: v for k, v in how.items() if k != "scratch"}, **more,
    )  # fmt: skip
    job = case.job(policy, **how)
    decisions, parts = served(job, tables(split, case) if split else None)
    assert_same(case, decisions, parts, want)
    assert_found(decisions, parts)
    return decisions, want


BYPASSING = ("belady", "clock", "layer-lru", "learned", "lfu", "lrfu", "lru", "random")
"""One of each structure that policies are built on."""


@pytest.mark.parametrize("policy", BYPASSING)
def test_bypass_equals_reference(policy):
    @QUICK
    @given(st.data())
    def check(data):
        case = data.draw(cases())
        how = data.draw(settings_for(case)) | {"scratch": data.draw(st.integers(1, 5))}
        fetch = data.draw(st.sampled_from(("", "+previous-token", "+next-layer")))
        both(case, f"{policy}:bypass=1{fetch}", how)

    check()


@pytest.mark.parametrize("policy", ["arc", "s3fifo", "w-tinylfu", "lirs", "static-pin"])
def test_bypass_of_those_without_a_reference(policy):
    """Every access finds its expert, and the checks of every run hold."""
    case = generate(7, layers=3, experts=9, top_k=3, sequences=3, prefill=6)
    for pool, slots, scratch in (("global", 12, 2), ("per-layer", 9, 3), ("per-layer", 15, 5)):
        job = case.job(
            f"{policy}:bypass=1", slots=slots, pool=pool, scratch=scratch, profile=case.workload()
        )
        decisions, parts = served(job)
        assert_found(decisions, parts)
        assert decisions.counters().misses_by["offer"] == decisions.counters().misses


@QUICK
@given(st.data())
def test_every_action_equals_reference(data):
    case = data.draw(cases())
    how = data.draw(settings_for(case)) | {"scratch": data.draw(st.integers(1, 4))}
    fetch = data.draw(st.sampled_from(("", "+previous-token")))
    policy = f"{ASKING}:Asking{fetch}"
    both(case, policy, how, answer=said_by_asking, named="lru")


@QUICK
@given(st.data())
def test_cpu_alone_needs_no_scratch(data):
    case = data.draw(cases())
    how = data.draw(settings_for(case)) | {"scratch": 0}
    n = case.n_experts
    both(case, f"{ASKING}:OnCpu", how, named="lru",
         answer=lambda layer, e, i: "cpu" if (layer * n + e) % 2 else "cpu-behind")  # fmt: skip


@QUICK
@given(st.data())
def test_split_equals_reference(data):
    case = data.draw(cases())
    how = data.draw(settings_for(case, units=("event",)))
    bypass = data.draw(st.booleans())
    how["scratch"] = data.draw(st.integers(1, 4)) if bypass else 0
    layers = len(case.layers)
    copy = data.draw(st.lists(st.integers(1, 50), min_size=layers, max_size=layers))
    each, token = data.draw(st.integers(0, 60)), data.draw(st.integers(0, 9))
    events = case.workload().n_events
    idle = data.draw(st.none() | st.lists(st.integers(0, 120), min_size=events, max_size=events))
    split = naive_misses.Split(
        copy, lambda layer, t: each + layer + token * t, data.draw(st.integers(0, 30)), idle
    )
    policy = data.draw(st.sampled_from(("lru", "lfu", "belady")))
    both(case, policy + (":bypass=1" if bypass else ""), how, split=split)


@QUICK
@given(st.data())
def test_numbers_are_those_without_where_every_miss_is_inserted(data):
    """A CPU that takes for ever gets nothing."""
    case = data.draw(cases())
    how = data.draw(settings_for(case))
    job = case.job("lru", **how)
    slow = naive_misses.Split([1] * len(case.layers), lambda layer, t: 10**12, 0)
    one, parts = served(job)
    two, again = served(job, tables(slow, case))
    assert (one.hit == two.hit).all() and (one.slot == two.slot).all()
    for name in ("copy_expert", "copy_kind", "copy_after", "copy_slot", "wave_hi", "wave_copy_hi"):
        assert joined(parts, name) == joined(again, name)
    assert one.counters().misses_by == {}
    assert two.counters().misses_by["insert"] == one.counters().misses


@QUICK
@given(st.data())
def test_bypass_never_misses_more_than_min_without(data):
    """Belady who need not insert, on events of one expert and a pool a layer: MIN of the wider
    choice."""
    case = data.draw(cases())
    how = data.draw(settings_for(case, units=("access",)))
    how = {k: v for k, v in how.items() if k != "write_back"}
    plain, _ = served(case.job("belady", **how))
    free, _ = served(case.job("belady:bypass=1", scratch=1, **how))
    assert free.counters().misses <= plain.counters().misses


def test_bytes_are_copies_and_scratch_is_never_resident():
    from uvmsim.mechanisms import mechanism

    case = generate(3, layers=3, experts=8, top_k=2, sequences=2)
    for policy in ("lru:bypass=1", f"{ASKING}:Asking"):
        job = case.job(policy, slots=6, pool="per-layer", scratch=2)
        plan = mechanism("expert-cache").plan(job)
        by = plan.counters.misses_by
        size = np.asarray(case.expert_bytes)
        copied = by["insert"] + by["offer"] + by["scratch"] + by["cpu-behind"]
        assert len(plan.copy_bytes) == copied
        ids = job.workload.ids
        action = Decisions(job)
        action.serve_all()
        moved = (action.hit == 0) & (action.action != ACTIONS.index("cpu"))
        assert plan.copy_bytes.sum() == size[ids[moved] // 8].sum()
        assert plan.counters.resident_at_end <= 6
        inserted = by["insert"] + by["offer"] + by["cpu-behind"]
        assert inserted - plan.counters.evictions == plan.counters.resident_at_end


def test_by_hand():
    """One slot a layer, two experts a token, {0 1} {0 2} {0 3}: without bypass too small; two slots and
    one layer: LFU keeps 0, and the newcomer leaves at once where the old one was used as often."""
    rows = [naive.Row(0, t, t, 1, 0, [0, e]) for t, e in enumerate((1, 2, 3, 1))]
    case = Case(rows, (0,), 4, 2)
    decisions, _ = served(case.job("belady:bypass=1", slots=2, scratch=2))
    # Belady keeps 0 and 1 throughout: 2 and 3 are read from a scratch place and leave.
    assert decisions.hit.tolist() == [0, 0, 1, 0, 1, 0, 1, 1]
    assert decisions.counters().evictions == 2


def test_scratch_is_paid_for():
    case = generate(1)
    job = case.job("lru:bypass=1", scratch=3)
    room = 4 * max(case.expert_bytes)
    slots = {}
    for policy, scratch in (("lru", 3), ("lru:bypass=1", 3), ("lru:bypass=1", 1)):
        one = case.job(policy, scratch=scratch)
        hw = replace(one.hardware, vram_bytes=10 * max(case.expert_bytes) + _fixed(one))
        slots[policy, scratch] = expert_slots(replace(one, hardware=hw))
    assert slots == {("lru", 3): 10, ("lru:bypass=1", 3): 7, ("lru:bypass=1", 1): 9}
    tight = replace(job.hardware, vram_bytes=_fixed(job) + room - 1)
    with pytest.raises(DoesNotFit, match="3 scratch places"):
        expert_slots(replace(job, hardware=tight))


def _fixed(job: Job) -> int:
    from uvmsim.runs.job import fixed_bytes

    return fixed_bytes(job)


def test_plain_sequences_always_insert():
    with pytest.raises(InputError, match="always inserts"):
        cache_misses(np.arange(4), 2, "lru:bypass=1")


@pytest.mark.parametrize(
    ("policy", "how", "told"),
    [
        ("lru:bypass=1", {"scratch": 0}, "give 1 or more"),
        ("lru:bypass=1", {"scratch": 2, "write_back": True}, "no slot to be written back"),
        (f"{ASKING}:Asking", {"scratch": 0}, "asks for a scratch place"),
        (f"{ASKING}:Wrong", {}, "on_miss.. returned 7"),
    ],
)
def test_mistakes_are_one_line(policy, how, told):
    case = generate(2)
    with pytest.raises(InputError, match=told):
        served(case.job(policy, slots=6, **how))
