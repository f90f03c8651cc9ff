"""A disk below host memory: decisions against a plain reference, and one timeline in both clocks."""

from __future__ import annotations

import random
from dataclasses import replace

import naive
import naive_tiers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import Case, cases, generate, settings_for
from test_sim_clock_reference import make, same
from test_sim_engines import machines

from traces.errors import InputError
from uvmsim.clocks import des, fast
from uvmsim.experts.page_cache import new_pages, touch
from uvmsim.machine.tier import PAGE, Tier
from uvmsim.mechanisms import mechanism
from uvmsim.policies.registry import parse
from uvmsim.runs.plan import DEMAND, PREFETCH, Plan
from uvmsim.runs.reads import Reads
from uvmsim.studies.simulate import simulate

ENGINES = pytest.mark.parametrize("engine", [des, fast], ids=["des", "fast"])
SLOW = settings(max_examples=60, deadline=None)


def tier_of(case: Case, slots: int, text: str = "nvme:1GB/s,3us,qd=2") -> Tier:
    return Tier.parse(text, slots * max(case.expert_bytes))


def plan_of(case: Case, policy: str, tier: Tier, **how) -> Plan:
    return mechanism("expert-cache").plan(case.job(policy, tier=tier, **how))


def dense_ids(case: Case, plan: Plan, policy: str, **how) -> list[int]:
    """The experts of a plan's copies, asked of the decisions themselves."""
    from uvmsim.experts.decisions import Decisions

    parts = Decisions(case.job(policy, **how)).serve_all()
    return np.concatenate([p.copy_expert for p in parts]).tolist()


# ---- decisions ------------------------------------------------------------------------------------


@SLOW
@given(st.data())
def test_reads_are_the_plain_references(data):
    case = data.draw(cases())
    how = data.draw(settings_for(case)) | {"write_back": False}
    policy = data.draw(st.sampled_from(("lru", "lru+previous-token", "lru:bypass=1+next-layer")))
    total = len(case.layers) * case.n_experts
    slots = data.draw(st.integers(1, total + 2))
    start = data.draw(st.sampled_from(("warm", "cold")))
    plan = plan_of(case, policy, tier_of(case, slots, f"ssd:1GB/s,3us,start={start}"), **how)
    ids = dense_ids(case, plan, policy, **how)
    copies = list(zip(range(len(ids)), ids, (plan.copy_kind == PREFETCH).tolist(), strict=True))
    held = min(slots, total) if start == "warm" else 0
    of_copy, reads = naive_tiers.lru_reads(copies, min(slots, total), held)
    r = plan.reads
    assert r.of_copy.tolist() == of_copy
    got = zip(r.copy.tolist(), r.slot.tolist(), *r.after.T.tolist(), strict=True)
    assert list(got) == reads
    sizes = [case.expert_bytes[ids[c] // case.n_experts] for c, *_ in reads]
    assert r.bytes.tolist() == sizes
    assert (r.lookups, r.hits) == (len(copies), len(copies) - len(reads))
    fast.run(plan)


@pytest.mark.parametrize(
    "policy", ["lru", "mru", "fifo", "lfu", "lfuda", "clock", "belady", "random"]
)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_policy_decides_about_host_memory(policy, data):
    case = data.draw(cases())
    how = data.draw(settings_for(case)) | {"write_back": False, "seed": 0}
    total = len(case.layers) * case.n_experts
    slots = data.draw(st.integers(1, total))
    plan = plan_of(case, "lru", tier_of(case, slots), tier_policy=parse(policy), **how)
    ids = [*range(slots), *dense_ids(case, plan, "lru", **how)]
    rows = [naive.Row(0, i, i, 1, 0, [e]) for i, e in enumerate(ids)]
    want = naive.simulate(rows, policy, n_experts=total, top_k=1, slots=slots, unit="access")
    missed = [c for c, hit in enumerate(want.hit[slots:]) if not hit]
    assert plan.reads.copy.tolist() == missed


@SLOW
@given(
    st.lists(st.integers(0, 6), max_size=60), st.lists(st.integers(1, 5), min_size=7, max_size=7),
    st.integers(5, 40),
)  # fmt: skip
def test_page_cache_is_a_list_of_pages(ids, size, capacity):
    missing = np.zeros(len(ids), np.int64)
    cache = new_pages(7, capacity)
    touch(np.array(ids, np.int32), np.array(size, np.int64), cache, missing)
    assert missing.tolist() == naive_tiers.pages(ids, size, capacity)
    assert cache.n[1] == cache.present.sum() <= capacity


def test_nothing_is_read_where_host_memory_holds_all():
    case = generate(5, layers=3, experts=8, top_k=2, decode=15)
    for engine in ("fast", "des"):
        job = case.job("lru+next-layer", slots=7)
        plain = simulate(job, clock=engine).to_json()
        mine = simulate(replace(job, tier=tier_of(case, 24)), clock=engine).to_json()
        assert mine.pop("ram")["disk_reads"] == 0
        assert mine["time_split_s"].pop("disk") == 0
        assert mine == plain


def test_cold_memory_reads_each_expert_once_where_all_fit():
    case = generate(5, layers=3, experts=8, top_k=2, decode=15)
    plan = plan_of(case, "lru", tier_of(case, 24, "hdd:1GB/s,3us,start=cold"), slots=5)
    ids = dense_ids(case, plan, "lru", slots=5)
    assert len(plan.reads.bytes) == len(set(ids)) < len(ids)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_more_memory_never_reads_more_under_lru(data):
    case = data.draw(cases())
    total = len(case.layers) * case.n_experts
    read = [
        len(plan_of(case, "lru", tier_of(case, n, "x:1GB/s,0ns,start=cold"), slots=total // 2 or 1,
                    unit="access").reads.bytes)
        for n in range(1, total + 1)
    ]  # fmt: skip
    assert read == sorted(read, reverse=True)


# ---- time -----------------------------------------------------------------------------------------


def with_reads(plan: Plan, of_copy, copy, ns, after=None, latency=0, depth=1) -> Plan:
    n = len(copy)
    none = np.full((n, 2), -1) if after is None else np.array(after)
    column = [np.array(x, np.int64) for x in (of_copy, copy, ns, ns)]
    return replace(plan, reads=Reads(
        *column, none.astype(np.int64).reshape(n, 2), np.full(n, -1, np.int32), latency, depth, 0, 0,
        0, "lru",
    ))  # fmt: skip


def random_plan(seed: int, waves: int, longest: int) -> Plan:
    """Any plan that the rules allow: shared reads, slots that are copied from, guesses."""
    r = random.Random(seed)
    kinds, unawaited, out, of_copy, copy, after = [], [], [], [], [], []
    for _ in range(waves):
        waits = [c for c in unawaited if r.random() < 0.4]
        unawaited = [c for c in unawaited if c not in waits]
        copies = []
        for _ in range(r.choice((0, 1, 2, 4))):
            kind, number = r.choice((DEMAND, DEMAND, PREFETCH)), len(kinds)
            if kind == PREFETCH:
                unawaited.append(number)
            copies.append((kind, r.randrange(number) if number and r.random() < 0.3 else -1,
                           r.randint(1, longest)))  # fmt: skip
            if r.random() < 0.6:
                before = [[c for c in range(number) if kinds[c] == k] for k in (DEMAND, PREFETCH)]
                after.append([r.choice([-1, *b[-3:]]) for b in before])
                of_copy.append(len(copy))
                copy.append(number)
            else:
                of_copy.append(r.choice((-1, *range(len(copy)))))
            kinds.append(kind)
        durations = [r.choice((0, 0, r.randint(0, longest))) for _ in range(3)]
        out.append((*durations, copies, waits))
    steps = sorted({waves, *(w for w in range(1, waves) if r.random() < 0.5)})
    ns = [r.randint(1, longest) for _ in copy]
    latency = r.choice((0, 1, 7, 20))
    return with_reads(make(out, steps), of_copy, copy, ns, after, latency, r.choice((1, 2, 5)))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 10), st.sampled_from((1, 3, 9, 30)))
def test_both_clocks_equal_the_tick_by_tick_reference(seed, waves, longest):
    plan = random_plan(seed, waves, longest)
    want = naive_tiers.tick(plan)
    same(fast.run(plan), want)
    same(des.run(plan), want)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_real_plans_have_one_timeline(data):
    case = data.draw(cases())
    how = data.draw(settings_for(case)) | {"write_back": False}
    policy = data.draw(st.sampled_from(("lru", "lru+previous-token", "layer-lru+next-layer")))
    text = data.draw(st.sampled_from((
        "d:1GB/s,3us,qd=2", "d:1MB/s,0ns,qd=1", "d:10MB/s,1ms,start=cold", "d:1GB/s,9us,mode=mmap",
    )))  # fmt: skip
    slots = data.draw(st.integers(1, len(case.layers) * case.n_experts))
    tier = tier_of(case, slots, text)
    if tier.mode == "mmap":
        tier = replace(tier, ram_bytes=slots * PAGE)
    job = case.job(policy, hardware=data.draw(machines()), tier=tier, **how)
    plan = mechanism("expert-cache").plan(job)
    t = fast.run(plan)
    same(t, des.run(plan))
    run = simulate(job)
    row = run.to_json()
    assert row["ram"]["disk_bytes"] == int(plan.reads.bytes.sum())
    assert row["time_s"] == pytest.approx(sum(row["time_split_s"].values()))


@ENGINES
def test_one_miss_from_disk(engine):
    """Opened at 10; 20 ns latency, 50 ns of bytes: in host memory at 80; the copy 80..180."""
    plan = with_reads(make([(10, 0, 5, [(DEMAND, -1, 100)], [])]), [0], [0], [50], latency=20)
    t = engine.run(plan)
    assert (t.read_start[0], t.read_done[0], t.copy_start[0], t.step_end[0]) == (10, 80, 80, 185)


@ENGINES
def test_latencies_overlap_and_bytes_queue(engine):
    """Two reads in flight: 10..80 and, right behind it, 80..130."""
    copies = [(DEMAND, -1, 10)] * 2
    t = engine.run(
        with_reads(make([(10, 0, 5, copies, [])]), [0, 1], [0, 1], [50, 50], None, 20, 2)
    )
    assert t.read_done.tolist() == [80, 130]
    one = engine.run(
        with_reads(make([(10, 0, 5, copies, [])]), [0, 1], [0, 1], [50, 50], None, 20, 1)
    )
    assert one.read_done.tolist() == [80, 150]


@ENGINES
def test_a_copy_from_memory_passes_one_that_waits_for_the_disk(engine):
    copies = [(DEMAND, -1, 30), (DEMAND, -1, 30)]
    t = engine.run(with_reads(make([(10, 0, 5, copies, [])]), [0, -1], [0], [50]))
    assert t.copy_start.tolist() == [60, 10]


@ENGINES
def test_a_read_in_flight_is_shared(engine):
    copies = [(PREFETCH, -1, 30)]
    waves = [(10, 0, 5, copies, []), (10, 0, 5, [(DEMAND, -1, 30)], [])]
    t = engine.run(with_reads(make(waves), [0, 0], [0], [50]))
    assert t.read_done.tolist() == [60]
    assert t.copy_start.tolist() == [90, 60]


@ENGINES
def test_a_demand_read_passes_queued_guesses_but_not_those_in_flight(engine):
    waves = [(10, 0, 5, [(PREFETCH, -1, 1)] * 3, []), (5, 0, 5, [(DEMAND, -1, 1)], [])]
    t = engine.run(with_reads(make(waves), [0, 1, 2, 3], [0, 1, 2, 3], [50] * 4))
    assert t.read_done.tolist() == [60, 160, 210, 110]


# ---- what is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nvme:7GB/s", "a rate and a latency"),
        ("nvme", "no [disk]"),
        ("nvme:0GB/s,1us", "above zero"),
        ("nvme:7GB/s,80us,qd=0", "1 to 1024"),
        ("nvme:7GB/s,80us,mode=mapped", "direct, buffered, mmap"),
        ("nvme:7GB/s,80us,mod=mmap", "did you mean mode"),
        ("nvme:7GB/s,80us,readahead=1000", "whole pages"),
        ("7GB/s,80us", "write it like"),
    ],
)
def test_a_bad_tier_is_one_line(text, why):
    with pytest.raises(InputError, match=why.replace("[", r"\[")) as err:
        Tier.parse(text, 1 << 30)
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"write_back": True}, "never written back"),
        ({"prefetch_pieces": 100}, "move whole"),
        ({"tier_policy": parse("lru+next-layer")}, "no prefetcher"),
        ({"tier_policy": parse("lru:bypass=1")}, "always enters"),
    ],
)
def test_what_does_not_go_with_a_disk(how, why):
    case = generate(1)
    with pytest.raises(InputError, match=why):
        plan_of(case, "lru", tier_of(case, 3), slots=6, **how)
    with pytest.raises(InputError, match="does not hold one expert"):
        plan_of(case, "lru", replace(tier_of(case, 3), ram_bytes=5), slots=6)


def test_costs_decide_where_sizes_differ():
    """gdsf by hand: latency makes small experts dear for their size."""
    case = generate(2, layers=2, experts=4, top_k=1, decode=20)
    tier = tier_of(case, 3, "hdd:1GB/s,9ms")
    plans = [
        plan_of(case, "lru", tier, tier_policy=parse(p), slots=2).reads.copy.tolist()
        for p in ("gdsf", "gdsf:frequency=0", "lfuda", "lru")
    ]
    assert plans[0] != plans[3]
    equal = replace(tier, latency_ns=0)
    alike = [
        plan_of(case, "lru", equal, tier_policy=parse(p), slots=2).reads.copy.tolist()
        for p in ("gdsf", "lfuda")
    ]
    assert alike[0] == alike[1]


# ---- the command line -----------------------------------------------------------------------------


def test_compare_says_what_the_disk_did(tmp_path):
    import uvmsim

    s = uvmsim.Scenario(
        expert_size="13.2MB", slots="25%", policies=["lru", "gdsf"], limit=120, ram="1GiB",
        tier="nvme:7GB/s,80us", tier_policy="gdsf",
    )  # fmt: skip
    lru, gdsf = (run.to_json() for run in s.compare())
    assert lru["ram"]["slots"] == (1 << 30) // 13_200_000
    assert lru["ram"]["disk_bytes"] == lru["ram"]["disk_reads"] * 13_200_000 > 0
    assert lru["ram"]["hits"] + lru["ram"]["disk_reads"] == lru["ram"]["lookups"] == lru["misses"]
    assert lru["time_split_s"]["disk"] > 0
    assert gdsf["ram"]["policy"] == "gdsf"
    des = s.with_(engine="des", policies="lru", limit=20).compare()
    assert des[0].to_json() == s.with_(policies="lru", limit=20).compare()[0].to_json()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"ram": "1GiB"}, "give both"),
        ({"tier": "nvme:7GB/s,80us"}, "give both"),
        ({"tier_policy": "lru"}, "give `tier`"),
        ({"ram": "1GiB", "tier": "nvme:7GB/s,80us", "mechanisms": "stream"}, "host memory alone"),
        ({"ram": "1GiB", "tier": "nvme:7GB/s,80us,mode=mmap", "tier_policy": "lru"}, "page cache"),
        ({"ram": "1MB", "tier": "nvme:7GB/s,80us"}, "does not hold one expert"),
    ],
)
def test_what_cannot_be_asked_is_one_line(how, why):
    import uvmsim

    with pytest.raises(InputError, match=why) as err:
        uvmsim.Scenario(slots="25%", limit=20, **how).compare()
    assert "\n" not in str(err.value)


def test_a_profile_keeps_its_disk(tmp_path):
    from uvmsim.machine.hardware import Hardware

    file = tmp_path / "mine.toml"
    file.write_text(
        'base = "h100"\n[disk.direct]\nbytes_per_s = "3 GB/s"\nlatency_ns = "90 us"\nsource = "test"\n'
    )
    hw = Hardware.load(str(file))
    again = tmp_path / "again.toml"
    again.write_text(hw.to_toml())
    for found in (hw, Hardware.load(str(again))):
        tier = Tier.parse("nvme:qd=4", 1, found.disk)
        assert (tier.bytes_per_s, tier.latency_ns, tier.depth) == (3 * 10**9, 90_000, 4)
        with pytest.raises(InputError, match="no \\[disk\\]"):
            Tier.parse("nvme:mode=mmap", 1, found.disk)


def test_curves_of_host_memory_are_what_is_read():
    import uvmsim

    s = uvmsim.Scenario(slots=["10%", "40%", "100%"], policies=["lfu"], limit=60)
    lru, lfu = uvmsim.mrc(s, behind="25%").by_pool["host memory"]
    for policy, curve in (("lru", lru), ("lfu", lfu)):
        for n in (25, 102, 256):
            asked = uvmsim.Scenario(
                slots="25%", policies="lru", limit=60, expert_size=1000, ram=1000 * n,
                tier="nvme:7GB/s,80us,start=cold", tier_policy=policy,
            )  # fmt: skip
            ram = asked.compare()[0].to_json()["ram"]
            at = curve.slots.tolist().index(n)
            assert (curve.accesses, curve.misses[at]) == (ram["lookups"], ram["disk_reads"])
    with pytest.raises(InputError, match="not sampled"):
        uvmsim.mrc(s, behind="25%", sample=0.5)
