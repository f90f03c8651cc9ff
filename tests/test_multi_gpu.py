"""Several GPUs: both clocks against a nanosecond-by-nanosecond reference, one GPU against the expert
cache, counters against each device's own, and invariants of the splits."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import generate
from test_sim_clock_reference import random_plan

from traces.errors import InputError
from uvmsim.clocks import des_joint, joint
from uvmsim.experts.shares import owners, shares_of
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.peer import Peer
from uvmsim.mechanisms import mechanism
from uvmsim.mechanisms.multi_gpu import joint_plan
from uvmsim.runs.joint import ENDED, OPENED, Gate, JointPlan, JointTimeline
from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK
from uvmsim.runs.splits import EXPERTS, LAYERS, POOL, POPULARITY, SPLITS
from uvmsim.runs.timeline import Timeline

H100 = Hardware.load("h100")
PEER = Peer("nvlink", 1_000_000_000, 700)


def tick(plan: JointPlan) -> JointTimeline:
    """The specification, one nanosecond after the other: copies that are over arrive; then all devices
    go as far as they can; then each idle engine takes, of the heads that may move, demand before
    prefetch, the one asked for first, of equals that of the first device."""
    devices = range(len(plan.plans))
    start = [[None] * len(p.copy_ns) for p in plan.plans]
    done = [[None] * len(p.copy_ns) for p in plan.plans]
    asked = [[None] * len(p.copy_ns) for p in plan.plans]
    times = {what: [[None] * len(p.pre_ns) for p in plan.plans] for what in (OPENED, ENDED)}
    ready = [[None] * len(p.pre_ns) for p in plan.plans]
    wave, stage, until = [0 for _ in devices], ["gate" for _ in devices], [0 for _ in devices]
    moving: list = [None] * plan.n_engines
    queues: dict = {}
    now = 0

    def go(d: int) -> bool:
        """One thing that a device does now; False if it can do nothing."""
        p, w = plan.plans[d], wave[d]
        if w == len(p.pre_ns):
            return False
        lo = int(p.wave_copy_hi[w - 1]) if w else 0
        wait_lo = int(p.wave_wait_hi[w - 1]) if w else 0
        if stage[d] == "gate":
            gates = [(times[g.what][g.device][g.wave], g.ns) for g in plan.gates[d].get(w, ())]
            if any(t is None or t + ns > now for t, ns in gates):
                return False
            stage[d], until[d] = "dense", now + int(p.pre_ns[w])
        elif stage[d] == "dense" and now >= until[d]:
            times[OPENED][d][w] = now
            for c in range(lo, p.wave_copy_hi[w]):
                key = (int(plan.engine[d][c]), bool(p.copy_kind[c] == PREFETCH), d)
                queues.setdefault(key, []).append(c)
                asked[d][c] = now
            stage[d], until[d] = "cpu", now + int(p.cpu_ns[w])
        elif stage[d] == "cpu" and now >= until[d]:
            stage[d] = "wait"
        elif stage[d] == "wait":
            needed = [c for c in range(lo, p.wave_copy_hi[w]) if p.copy_kind[c] == DEMAND]
            needed += p.waits[wait_lo : p.wave_wait_hi[w]].tolist()
            if any(done[d][c] is None for c in needed):
                return False
            ready[d][w] = now
            stage[d], until[d] = "work", now + int(p.compute_ns[w])
        elif stage[d] == "work" and now >= until[d]:
            times[ENDED][d][w] = now
            wave[d], stage[d] = w + 1, "gate"
        else:
            return False
        return True

    def free(d: int, c: int) -> bool:
        others = (int(plan.plans[d].copy_after[c]), int(plan.also[d][c]))
        return all(o < 0 or done[d][o] is not None for o in others)

    while any(wave[d] < len(plan.plans[d].pre_ns) for d in devices) or any(
        x is None for own in done for x in own
    ):
        for e, held in enumerate(moving):
            if held and held[2] == now:
                done[held[0]][held[1]] = now
                moving[e] = None
        while True:
            went = [go(d) for d in devices]
            if not any(went):
                break
        for e in range(plan.n_engines):
            if moving[e]:
                continue
            for guess in (False, True):
                heads = [
                    (asked[d][queues[e, guess, d][0]], d)
                    for d in devices
                    if queues.get((e, guess, d)) and free(d, queues[e, guess, d][0])
                ]
                if heads:
                    d = min(heads)[1]
                    c = queues[e, guess, d].pop(0)
                    start[d][c] = now
                    moving[e] = (d, c, now + int(plan.plans[d].copy_ns[c]))
                    break
        now += 1
    none = np.zeros(0, np.int64)
    ends = [max(times[g.what][g.device][g.wave] + g.ns for g in gates) for gates in plan.step_gates]
    return JointTimeline(
        np.array(ends, np.int64),
        [
            Timeline(none, *(np.array(a, np.int64) for a in (times[OPENED][d], ready[d], start[d],
                     done[d])))
            for d in devices
        ],
    )  # fmt: skip


def random_joint(seed: int, devices: int, waves: int, longest: int, prefetchy: float) -> JointPlan:
    """Devices with plans of their own, and gates at random that lead to no circle: a wave waits for
    waves of lower numbers, or for openings of the same number on earlier devices."""
    r = random.Random(seed)
    plans = [
        random_plan(r.randrange(2**32), r.randint(1, waves), longest, prefetchy)
        for _ in range(devices)
    ]
    gates: list[dict[int, list[Gate]]] = [{} for _ in plans]
    for d, p in enumerate(plans):
        for w in range(len(p.pre_ns)):
            for other, q in enumerate(plans):
                if other == d or r.random() < 0.6:
                    continue
                same = other < d and w < len(q.pre_ns) and r.random() < 0.5
                at = w if same else r.randrange(-1, min(w, len(q.pre_ns)))
                if at >= 0:
                    what = OPENED if same else r.choice((OPENED, ENDED))
                    gate = Gate(other, at, what, r.choice((0, r.randint(0, longest))))
                    gates[d].setdefault(w, []).append(gate)
    n_engines = r.randint(1, 2 * devices)
    also = [
        np.array([r.randrange(c) if c and r.random() < 0.2 else -1 for c in range(len(p.copy_ns))],
                 np.int64)
        for p in plans
    ]  # fmt: skip
    engine = [np.array([r.randrange(n_engines) for _ in p.copy_ns], np.int64) for p in plans]
    # A wait for a copy that is never asked for would never end: engines see a device's copies in order,
    # and a copy follows earlier ones only.
    step_gates = [[Gate(d, len(p.pre_ns) - 1, ENDED, r.randint(0, 3))] for d, p in enumerate(plans)]
    return JointPlan(plans, gates, step_gates, engine, n_engines, also,
                     [np.zeros(len(p.copy_ns), bool) for p in plans])  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 7),
    st.sampled_from((1, 3, 9)),
    st.sampled_from((0.0, 0.4, 0.8)),
)
def test_both_clocks_equal_the_reference(seed, devices, waves, longest, prefetchy):
    plan = random_joint(seed, devices, waves, longest, prefetchy)
    want = tick(plan)
    for clock in (joint, des_joint):
        got = clock.run(plan)
        assert got.step_end.tolist() == want.step_end.tolist()
        for a, b in zip(got.devices, want.devices, strict=True):
            for name in a.__dataclass_fields__:
                assert getattr(a, name).tolist() == getattr(b, name).tolist(), name


def job_of(seed: int, policy: str = "lru", unit: str = "event", **more):
    case = generate(seed, layers=4, experts=8, top_k=2, missing=0.1 * (seed % 2))
    return case.job(policy, unit, **({"slots": 8, "hardware": H100, "peer": PEER} | more))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**16),
    st.sampled_from(("lru", "lru+next-layer", "learned", "layer-lru", "belady")),
    st.sampled_from((LAYERS, EXPERTS, POPULARITY)),
    st.sampled_from(("event", "access")),
    st.booleans(),
    st.sampled_from(("never", "sequence")),
)
def test_one_gpu_is_the_expert_cache(seed, policy, split, unit, write_back, reset):
    job = job_of(seed, policy, unit, split=split, write_back=write_back, reset=reset)
    one = mechanism("expert-cache").run(job)
    for clock in ("fast", "des"):
        got = mechanism("multi-gpu").run(job, clock)
        assert got.step_ns.tolist() == one.step_ns.tolist()
        assert got.counters.hits == one.counters.hits
        assert got.trail.plan.hit.tolist() == one.trail.plan.hit.tolist()
        (mine,) = got.trail.timeline.devices
        theirs = one.trail.timeline
        for name in ("wave_open", "wave_ready", "copy_start", "copy_done"):
            assert getattr(mine, name).tolist() == getattr(theirs, name).tolist()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**16),
    st.sampled_from(("lru", "lru+next-layer", "learned", "layer-lru", "belady")),
    st.sampled_from(SPLITS),
    st.integers(2, 3),
    st.booleans(),
)
def test_both_clocks_agree_on_real_plans(seed, policy, split, gpus, shared):
    job = job_of(seed, policy, split=split, gpus=gpus, shared_link=shared)
    plan = joint_plan(job)
    assert joint.run(plan).equals(des_joint.run(plan))
    c = plan.counters
    assert c.accesses == len(job.workload.ids) == len(plan.hit)
    assert (c.layer_hits.sum(), c.layer_accesses.sum()) == (c.hits, c.accesses)
    one = mechanism("expert-cache").run(replace(job, gpus=1)).counters
    assert c.layer_accesses.tolist() == one.layer_accesses.tolist()


@pytest.mark.parametrize("split", (LAYERS, EXPERTS, POPULARITY))
def test_shares_are_a_partition(split):
    job = job_of(3, split=split, gpus=3)
    shares = shares_of(job)
    w = job.workload
    assert np.sort(np.concatenate([s.accesses for s in shares])).tolist() == list(range(len(w.ids)))
    own = np.concatenate([s.experts[s.experts >= 0] for s in shares])
    assert np.sort(own).tolist() == list(range(w.n_layers * w.n_experts))
    for s in shares:
        mine = s.job.workload
        # What the share calls its experts, the run calls by the same name.
        assert s.experts[mine.ids].tolist() == w.ids[s.accesses].tolist()
        assert mine.counts.tolist() == w.counts[s.accesses].tolist()
        for i, e in enumerate(s.events.tolist()):
            rows = mine.row_experts[mine.row_lo[i] : mine.row_lo[i + 1]]
            whole = w.row_experts[w.row_lo[e] : w.row_lo[e + 1]]
            local = {int(x) % mine.n_experts: int(g) % w.n_experts
                     for x, g in enumerate(s.experts) if g >= 0
                     and x // mine.n_experts == mine.event_layer[i]}  # fmt: skip
            want = [[x for x in row if x in local.values()] for row in whole.tolist()]
            got = [[local[x] for x in row if x >= 0] for row in rows.tolist()]
            assert got == [row for row in want if row]
    dense = sum(sum(s.job.model.dense_bytes) for s in shares)
    assert dense == sum(job.model.dense_bytes)
    assert sum(s.job.model.output_bytes for s in shares) == job.model.output_bytes


def test_popular_experts_are_dealt_to_and_fro():
    w = generate(5, layers=2, experts=6, top_k=2).workload()
    owner = owners(w, 2, by_popularity=True)
    uses = np.bincount(w.ids, weights=w.counts, minlength=12).reshape(2, 6)
    for layer in range(2):
        order = np.argsort(-uses[layer], kind="stable")
        assert owner[layer, order].tolist() == [0, 1, 1, 0, 0, 1]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 3), st.sampled_from((2, 5, 9)))
def test_lru_with_lru_behind_it_is_a_longer_lru(seed, gpus, slots):
    """One access at a time, so that nothing is pinned: what the host brings is what LRU with all slots
    misses."""
    job = job_of(seed, "lru", "access", slots=slots, split=POOL, gpus=gpus)
    plan = joint_plan(job)
    inward = plan.plans[0].copy_kind != WRITEBACK
    from_host = int((inward & ~plan.on_peer[0]).sum())
    whole = mechanism("expert-cache").run(replace(job, gpus=1, slots=slots * gpus))
    assert from_host == whole.counters.misses
    assert plan.counters.misses == int(inward.sum())


def test_a_layer_split_worked_out_by_hand():
    """Four layers on two cards, everything resident after a first pass: a step is the one-card step and
    two hops, one with the activations (4 values of 4 bytes, at 1 GB/s), one with the token."""
    job = job_of(0, slots=32)
    one = mechanism("expert-cache").run(job)
    two = mechanism("multi-gpu").run(replace(job, gpus=2, slots=16))
    hits = np.flatnonzero(one.trail.plan.hit == 0)
    last = int(job.workload.event_step[job.workload.access_event[hits[-1]]]) if len(hits) else 0
    more = two.step_ns[last + 1 :] - one.step_ns[last + 1 :]
    tokens = job.workload.step_tokens[last + 1 :]
    assert len(more) and more.tolist() == [700 + 16 * n + 700 + 4 * n for n in tokens.tolist()]


def test_a_shared_link_is_never_faster():
    for split in (LAYERS, EXPERTS, POPULARITY):
        for seed in range(4):
            job = job_of(seed, split=split, gpus=2)
            own = mechanism("multi-gpu").run(job).step_ns.sum()
            shared = mechanism("multi-gpu").run(replace(job, shared_link=True)).step_ns.sum()
            assert shared >= own


def test_what_several_gpus_cannot():
    run = mechanism("multi-gpu").run
    for change, word in (
        ({"gpus": 5}, "layers"), ({"gpus": 9, "split": EXPERTS}, "experts of a layer"),
        ({"split": "rows"}, "must be one of"), ({"prefetch_pieces": 4}, "pieces"),
        ({"split": POOL, "write_back": True, "gpus": 2}, "other card"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=word):
            run(replace(job_of(1), **change))


def test_what_a_user_types(tmp_path, capsys):
    from uvmsim import Scenario

    s = Scenario(
        slots="25%", policies="lru", gpus=2, split="experts", peer="nvlink:400GB/s:8us", limit=900
    )
    (run,) = s.compare()
    said = run.to_json()
    assert (said["split"], said["peer"]) == ("experts", "nvlink 400 GB/s, 8 us a hop")
    assert [d["slots"] for d in said["gpus"]] == [64, 64] and said["slots"] == 128
    s.compare().show()
    assert "2 GPUs by experts: 64 on each" in capsys.readouterr().out
    for wrong, word in (
        ({"gpus": 0}, "1 to"), ({"split": "rows"}, "must be one of"),
        ({"gpus": 1, "split": "pool"}, "several GPUs"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=word):
            s.with_(**({"peer": None, "split": None} | wrong))
    with pytest.raises(InputError, match="nvlink or pcie"):
        s.with_(peer="rope").compare()
    with pytest.raises(InputError, match="one GPU"):
        s.with_(mechanisms="hybrid").compare()
