"""Mechanisms without a policy: counts and times computed by hand from the descriptions."""

from __future__ import annotations

import json
from dataclasses import replace

import naive
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import Case, cases, generate

from uvmsim.commands.hybrid_line import hybrid_line as command
from uvmsim.machine.cpu_experts import CpuExpertsSpec, cpu_experts
from uvmsim.machine.engine import EngineProfile
from uvmsim.machine.hardware import Hardware
from uvmsim.policies.registry import parse
from uvmsim.studies.hybrid_line import hybrid_line
from uvmsim.studies.resolve import resolve
from uvmsim.studies.scenario import Scenario
from uvmsim.studies.simulate import simulate

# Round numbers: 1 byte = 1 ns of device memory, 2 ns of link, 4 ns of a CPU, 3 ns of zero-copy;
# arithmetic is free.
PROGRAM = replace(
    EngineProfile.load("estimated"),
    dense_launch_ns=7, expert_launch_ns=11, cpu_sync_ns=13, decision_ns=17, expert_tile_tokens=128,
)  # fmt: skip
HW = replace(
    Hardware.load("rtx5090"), engine=PROGRAM,
    memory_bytes_per_s=10**9, h2d_bytes_per_s=10**9 // 2, d2h_bytes_per_s=10**9 // 2,
    pageable_h2d_bytes_per_s=10**9 // 8, pageable_d2h_bytes_per_s=10**9 // 8,
    cpu_bytes_per_s=10**9 // 4, zero_copy_bytes_per_s=10**8 * 2, compute_flops=10**18,
    copy_latency_ns=50, duplex=True, duplex_factor=0.5,
)  # fmt: skip
EXPERT = (1000, 1100)
DENSE, HEAD = 700, 300
KV = 64 // 2  # bytes a token and block


def decode_case() -> Case:
    """Two layers, two decode steps of one token at positions 0 and 1, two experts each."""
    ids = {(0, 0): [0, 1], (0, 1): [2, 3], (1, 0): [1, 2], (1, 1): [3, 0]}
    rows = [naive.Row(0, s, s, 1, layer, ids[s, layer]) for s in (0, 1) for layer in (0, 1)]
    return Case(rows, (0, 1), 4, 2)


def dense(step: int, rate: float = 1.0) -> int:
    """One block's dense part: weights, then the KV cache of 1 or 2 positions from VRAM."""
    return round(DENSE * rate) + KV * (step + 1) + PROGRAM.dense_launch_ns


def head(rate: float = 1.0) -> int:
    return round(HEAD * rate) + PROGRAM.dense_launch_ns


def run(name: str, hw: Hardware = HW, **how):
    return simulate(decode_case().job(hardware=hw, **how), name)


def experts_ns(layer: int, rate: float = 1.0) -> int:
    return round(2 * EXPERT[layer] * rate) + PROGRAM.expert_launch_ns


def test_resident_is_the_sum_of_its_parts():
    r = run("resident")
    step = [2 * dense(s) + experts_ns(0) + experts_ns(1) + head() for s in (0, 1)]
    assert r.step_end.tolist() == [step[0], sum(step)]
    row = r.to_json()
    assert (row["hits"], row["misses"], row["bytes_h2d"], row["evictions"]) == (8, 0, 0, 0)
    assert row["decode_tokens_per_s"] == pytest.approx(2 / (sum(step) * 1e-9))
    assert row["slots"] == 8


def test_resident_that_does_not_fit_is_a_row_not_an_error():
    fixed = 2 * DENSE + HEAD + 2 * 64  # dense blocks, head, KV cache of two positions
    needed = fixed + 4 * sum(EXPERT)
    for vram, status in ((needed, "ok"), (needed - 1, "out-of-memory")):
        row = run("resident", replace(HW, vram_bytes=vram)).to_json()
        assert row["status"] == status
    assert (row["needed_bytes"], row["available_bytes"]) == (needed, needed - 1)
    assert "time_s" not in row and "hits" not in row


def test_expert_cache_takes_what_vram_leaves_and_refuses_less_than_one():
    fixed = 2 * DENSE + HEAD + 2 * 64
    job = decode_case().job("lru", hardware=replace(HW, vram_bytes=fixed + 5 * 1100 + 1099))
    assert simulate(job).trail.plan.slots == 5
    job = replace(job, hardware=replace(HW, vram_bytes=fixed + 1099))
    assert simulate(job).to_json()["status"] == "out-of-memory"


def test_stream_copies_every_expert_before_it_computes():
    """One expert after the other: copy (2 ns a byte + 50), compute (1 ns a byte + 11)."""
    layer = [2 * (2 * b + 50 + b + PROGRAM.expert_launch_ns) for b in EXPERT]
    step = [2 * dense(s) + sum(layer) + head() for s in (0, 1)]
    r = run("stream")
    assert r.step_end.tolist() == [step[0], sum(step)]
    row = r.to_json()
    assert (row["hits"], row["misses"]) == (0, 8)
    assert (row["bytes_h2d"], row["bytes_d2h"]) == (4 * sum(EXPERT), 0)


def test_stream_with_write_back_copies_out_before_the_next_comes_in():
    """Each copy in but the first waits for the copy out of the expert before, queued with it."""
    ins = [EXPERT[layer] for _ in (0, 1) for layer in (0, 0, 1, 1)]
    now, ends, out = 0, [], 0
    for i, size in enumerate(ins):
        if i % 2 == 0:
            now += dense(i // 4)
        now += out + (2 * size + 50) + size + PROGRAM.expert_launch_ns
        out = 2 * size + 50
        if i % 4 == 3:
            now += head()
            ends.append(now)
    r = run("stream", write_back=True)
    assert r.step_end.tolist() == ends
    assert r.to_json()["bytes_d2h"] == 4 * sum(EXPERT)


def test_zero_copy_reads_all_weights_across_the_link():
    """5 ns a byte for weights; the KV cache is in VRAM."""
    step = [2 * dense(s, 5) + experts_ns(0, 5) + experts_ns(1, 5) + head(5) for s in (0, 1)]
    r = run("zero-copy")
    assert r.step_end.tolist() == [step[0], sum(step)]
    row = r.to_json()
    assert (row["hits"], row["misses"]) == (0, 8)
    assert row["bytes_h2d"] == 4 * sum(EXPERT) + 2 * (2 * DENSE + HEAD)


@pytest.mark.parametrize("ncmoe", [0, 1, 2, 9])
def test_cpu_offload_in_decode(ncmoe):
    """Layers below ncmoe: the CPU reads two experts at 4 ns a byte, and 13 ns to go there and back."""
    end, ends = 0, []
    for s in (0, 1):
        for layer in (0, 1):
            cpu = 4 * 2 * EXPERT[layer] + PROGRAM.cpu_sync_ns
            end += dense(s) + (cpu if layer < ncmoe else experts_ns(layer))
        end += head()
        ends.append(end)
    r = run("cpu-offload", ncmoe=ncmoe)
    assert r.step_end.tolist() == ends
    row = r.to_json()
    away = 4 * min(ncmoe, 2)
    assert (row["hits"], row["misses"], row["bytes_h2d"]) == (8 - away, away, 0)
    assert row["slots"] == 4 * (2 - min(ncmoe, 2))


@pytest.mark.parametrize("tokens", [31, 32])
def test_cpu_offload_copies_in_a_large_prefill(tokens):
    """From 32 tokens the used experts are copied over (from a mapped file: not pinned), fewer stay
    with the CPU."""
    rows = [naive.Row(0, t, 0, 0, 0, [t % 2, 2]) for t in range(tokens)]
    case = Case(rows, (0,), 4, 2)
    kv = 64 * sum(t + 1 for t in range(tokens))
    before = DENSE + kv + PROGRAM.dense_launch_ns
    if tokens >= 32:
        experts = 3 * (8 * 1000 + 50) + 3 * 1000 + PROGRAM.expert_launch_ns
    else:
        experts = 4 * 3 * 1000 + PROGRAM.cpu_sync_ns
    r = simulate(case.job(hardware=HW, ncmoe=1), "cpu-offload")
    assert r.step_end.tolist() == [before + experts + head()]
    assert r.to_json()["bytes_h2d"] == (3000 if tokens >= 32 else 0)
    assert r.to_json()["prefill_tokens_per_s"] == pytest.approx(
        tokens / (1e-9 * (before + experts + head()))
    )


def test_expert_cache_by_hand():
    """Step 0 misses all four; step 1 hits expert 1 of layer 0 and expert 3 of layer 1."""
    plus = PROGRAM.decision_ns
    copy = [2 * b + 50 for b in EXPERT]
    first = 2 * (dense(0) + plus) + 2 * sum(copy) + experts_ns(0) + experts_ns(1) + head()
    second = 2 * (dense(1) + plus) + sum(copy) + experts_ns(0) + experts_ns(1) + head()
    r = simulate(decode_case().job("lru", hardware=HW, slots=8))
    assert r.trail.plan.hit.tolist() == [0, 0, 0, 0, 1, 0, 1, 0]
    assert r.step_end.tolist() == [first, first + second]
    row = r.to_json()
    assert row["bytes_h2d"] == 3 * sum(EXPERT)
    assert row["hit_rate_by_layer"] == [0.25, 0.25]
    assert row["time_split_s"]["transfer"] == pytest.approx(3 * sum(copy) * 1e-9)


def test_pageable_memory_is_slower():
    fast, slow = (
        simulate(decode_case().job("lru", hardware=HW, slots=8, pinned=p)) for p in (True, False)
    )
    gap = int(slow.step_end[-1] - fast.step_end[-1])
    assert gap == 3 * sum(EXPERT) * (8 - 2)


@settings(max_examples=25, deadline=None)
@given(cases(), st.sampled_from(("event", "access")))
def test_an_expert_cache_that_holds_all_is_resident_after_the_first_touch(case, unit):
    """Cold misses only; with nothing left to miss it differs from `resident` by the decisions."""
    job = case.job("lru", unit=unit, hardware=HW, slots=10**6)
    plan = simulate(job).trail.plan
    assert plan.counters.misses == len(set(job.workload.ids.tolist()))
    assert plan.counters.evictions == 0
    resident = simulate(job, "resident").trail.plan
    assert plan.compute_ns.tolist() == resident.compute_ns.tolist()
    waves = len(plan.pre_ns)
    assert int(plan.pre_ns.sum() - resident.pre_ns.sum()) == waves * PROGRAM.decision_ns


def test_hybrid_by_hand():
    """Two misses a layer: copied one after the other they take 2 x 2,050 ns, one of them on the
    CPU 4,013. So the CPU takes the one touched last, and the GPU computes what was copied."""
    r = run("hybrid", policy=parse("lru"), slots=4)
    each = [dense(s) + 17 + max(13 + 4 * n, 50 + 2 * n) + n + 11 for s in (0, 1) for n in EXPERT]
    assert r.step_ns.tolist() == [each[0] + each[1] + head(), each[2] + each[3] + head()]
    by = r.to_json()["misses_by"]
    assert by == {"insert": 4, "offer": 0, "scratch": 0, "cpu": 4, "cpu-behind": 0}
    assert r.to_json()["bytes_h2d"] == 2 * sum(EXPERT)
    assert simulate(
        decode_case().job("lru", slots=4, hardware=HW), "hybrid", "des"
    ).step_ns.tolist() == (r.step_ns.tolist())
    # A CPU half as fast is left alone: 8,013 ns would be more than both copies.
    slow = run("hybrid", HW.with_(ram="0.125GB/s"), policy=parse("lru"), slots=4)
    assert slow.to_json()["misses_by"]["cpu"] == 0
    assert (
        slow.step_ns.tolist() == run("expert-cache", policy=parse("lru"), slots=4).step_ns.tolist()
    )


def test_hybrid_copies_behind_where_the_link_rests():
    """Step 0: CPU 4,013 ns (4,413) beside a copy of 2,050 (2,250); what is left of that and the next
    block's dense work of 739 or more have room for the CPU's one too. Step 1 finds it."""
    r = run("hybrid", policy=parse("lru"), slots=4, behind=True)
    by = {k: n for k, n in r.to_json()["misses_by"].items() if n}
    assert by == {"insert": 4, "cpu-behind": 2}
    assert r.counters.hits == 2
    assert run("hybrid", policy=parse("lru"), slots=4).counters.hits == 0


def test_a_link_slower_than_the_cpu_still_brings_what_is_used_again():
    """The CPU takes every miss. Without copies behind nothing is ever resident."""
    slow = replace(HW, h2d_bytes_per_s=10**9 // 40)
    case = generate(5, layers=3, experts=8, top_k=3, sequences=3)
    gone, kept = (
        simulate(case.job("lru", slots=12, hardware=slow, behind=b), "hybrid")
        for b in (False, True)
    )
    by = kept.to_json()["misses_by"]
    assert gone.to_json()["misses_by"]["cpu"] == gone.counters.misses
    assert gone.counters.hits == 0
    assert by["cpu-behind"] > 0 and kept.counters.hits > 0
    assert kept.step_ns.sum() < gone.step_ns.sum()
    assert simulate(
        case.job("lru", slots=12, hardware=slow, behind=True), "hybrid", "des"
    ).step_ns.tolist() == (kept.step_ns.tolist())


@pytest.mark.parametrize(("asked", "found"), [(None, True), (True, True), (False, False)])
def test_copying_behind_is_the_default(asked, found):
    assert resolve(Scenario(limit=8, behind=asked)).base.behind is found


def test_the_cpus_speed_is_taken_by_type(tmp_path):
    """Calibrated tables come first, then an engine's terms, then an estimate; a file keeps them."""
    measured = {"bytes_per_s": 2 * 10**9, "flops": 10**12, "wave_ns": 500, "source": "measured"}
    spec = {"MXFP4": CpuExpertsSpec(**measured)}
    hw = replace(HW, engine=replace(PROGRAM, cpu_experts=spec))
    found = cpu_experts(hw, "MXFP4")
    assert (found.bytes_per_s, found.sync_ns) == (2 * 10**9, 513)
    assert found.ns(1000.0, 10.0, [0, 1]).tolist() == [0, 500]
    assert found.ns(1000.0, 10**9, [1])[0] == 2 * 10**6
    assert "as MXFP4" in cpu_experts(hw, "Q8_0").source
    assert cpu_experts(HW, "MXFP4").source.startswith("estimate")
    assert "terms" in cpu_experts(Hardware.load("h100", "llama.cpp-h100"), "MXFP4").source
    file = tmp_path / "mine.toml"
    file.write_text(hw.to_toml())
    again = Hardware.load(str(file))
    assert cpu_experts(again, "MXFP4") == found
    assert again.numbers() == hw.numbers() != HW.numbers()
    slower = again.with_(ram="0.125GB/s")
    assert cpu_experts(slower, "MXFP4").bytes_per_s == 10**9


def test_break_even_line(tmp_path):
    """Where the CPU's time passes the copy's and the GPU's, token by token."""
    made = hybrid_line("gpt-oss-20b", Hardware.load("h100"))
    for line in made.lines:
        for p in line.points:
            assert p.cpu_pays == (p.tokens <= line.break_even)
            assert p.cpu_pays == (p.cpu_ns < p.copy_ns + p.gpu_ns)
    assert made.lines[0].kind == "MXFP4"
    assert made.to_json()["types"][0]["cpu_pays_up_to_tokens"] == made.lines[0].break_even > 0
    shown = CliRunner().invoke(command, ["--hardware", "h100"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert "MXFP4" in shown.output
    assert all(len(x) <= 80 for x in shown.output.splitlines() if not x.startswith("note"))
    again = CliRunner().invoke(command, ["--hardware", "h100", "--json"])
    assert json.loads(again.output) == json.loads(json.dumps(made.to_json()))
