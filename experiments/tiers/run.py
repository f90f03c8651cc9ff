"""The model of a disk held against published cells: nibor1896/Crow, DeepSeek-V4-Flash from an SSD.

    python experiments/tiers/run.py

Writes results.json beside it: the numbers of README.md. What is published: issue 44 (slots a layer 24,
32, 40: hit rate, misses, stall a call, tokens/s), 28 (two types of weights: hit rate, tokens/s), 30
(prefill, mapped file against direct reads), 38 (7.96 experts a call). Neither the routing nor the
machine is: routing is synthetic, skewed just so much that LRU hits as often as published in one cell.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import uvmsim
from traces.routing import RoutingTrace
from traces.synth.generate import independent, zipf_logits
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.machine.tier import Tier
from uvmsim.mechanisms import mechanism
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.studies.simulate import simulate
from uvmsim.workload import build_workload

HERE = Path(__file__).resolve().parent
LAYERS, EXPERTS, TOP_K, TOKENS = 43, 256, 8, 88
"""43 x 8 x 88 = 30,272 accesses: what hits and misses of issue 44 come to (30,266 to 30,275), with 7.96
experts a call. 256 experts are assumed."""
MXFP4, IQ1_S = 13_369_344, 6_868_173
"""Bytes of an expert: 12.75 and 6.55 MiB."""
SLOTS = {
    24: {"hit_rate": 0.6895, "misses": 9399, "stall_ms": 3.692, "tokens_per_s": 5.44},
    32: {"hit_rate": 0.7331, "misses": 8079, "stall_ms": 3.255, "tokens_per_s": 6.18},
    40: {"hit_rate": 0.7495, "misses": 7583, "stall_ms": 3.247, "tokens_per_s": 6.87},
}
TYPES = {
    "MXFP4": {"bytes": MXFP4, "hit_rate": 0.6804, "tokens_per_s": 5.07},
    "IQ1_S": {"bytes": IQ1_S, "hit_rate": 0.6925, "tokens_per_s": 8.01},
}
PREFILL = {"mmap": 2.85, "direct": 1.55}
LATENCY_NS = 80_000
"""Estimate: nobody says what the SSD is."""


def routing(zipf: float) -> RoutingTrace:
    """One sequence, decoded; each token draws anew from a layer's popularity."""
    made = independent(zipf_logits(LAYERS, EXPERTS, zipf, 1), TOP_K)
    ids, _ = made.generate(np.array([0, TOKENS]), 1)
    return uvmsim.routing(ids, n_experts=EXPERTS)


def job_of(trace: RoutingTrace, nbytes: int, slots: int, decision_ns: int, tier: Tier) -> Job:
    """Slots a layer under LRU; the rest of a layer's work is a constant."""
    sizes = (nbytes,) * LAYERS
    info = replace(
        trace.meta.model, expert_bytes=sizes, dense_bytes=(0,) * LAYERS, output_bytes=0,
        embedding_bytes=0, kv_bytes_per_token=0, n_embd=4096, n_ff_expert=2048, n_vocab=1,
    )  # fmt: skip
    hw = Hardware.load("rtx5090")
    hw = replace(hw, engine=replace(hw.engine, decision_ns=decision_ns))
    return Job(
        build_workload(trace), Model.from_info(info), hw, parse("lru"), slots * LAYERS, "per-layer",
        tier=tier, pinned=tier.mode != "mmap",
    )  # fmt: skip


def hit_rate(trace: RoutingTrace, slots: int) -> float:
    tier = Tier("ssd", 10**10, LATENCY_NS, ram_bytes=64 * MXFP4)
    plan = mechanism("expert-cache").plan(job_of(trace, MXFP4, slots, 0, tier))
    return plan.counters.hits / plan.counters.accesses


def skew_for(rate: float, slots: int) -> float:
    """The Zipf slope whose routing LRU hits so often."""
    low, high = 0.2, 3.0
    for _ in range(18):
        middle = (low + high) / 2
        low, high = (middle, high) if hit_rate(routing(middle), slots) < rate else (low, middle)
    return (low + high) / 2


def run(trace: RoutingTrace, nbytes: int, slots: int, decision_ns: int, rate: float) -> dict:
    """Host memory that only passes experts on: as many slots as reads in flight."""
    tier = Tier("ssd", int(rate), LATENCY_NS, 8, start="cold", ram_bytes=8 * nbytes)
    return simulate(job_of(trace, nbytes, slots, decision_ns, tier)).to_json()


def fit_types(traces: dict[str, RoutingTrace]) -> tuple[int, float]:
    """Time of a layer beside its experts, and the disk's rate, from the two speeds of issue 28."""
    want = np.array([1 / TYPES[t]["tokens_per_s"] for t in TYPES])

    def times(decision: float, pace: float) -> np.ndarray:
        rows = [run(traces[t], TYPES[t]["bytes"], 24, round(decision), 1 / pace) for t in TYPES]
        return np.array([r["time_s"] / TOKENS for r in rows])

    x = np.array([1e6, 1 / 7.7e9])
    for _ in range(6):
        at = times(*x)
        slope = np.stack([(times(*(x * s)) - at) / (x * 0.01)[i] for i, s in enumerate(
            (np.array([1.01, 1]), np.array([1, 1.01])))], axis=1)  # fmt: skip
        x = np.maximum(x + np.linalg.solve(slope, want - at), (0.0, 1e-12))
    return round(float(x[0])), 1 / float(x[1])


def prefill(nbytes: int, decision_ns: int, rate: float) -> float:
    """Tokens/s where no expert is ever found: each token's are others than the token's before."""
    ids = (TOP_K * np.arange(TOKENS)[:, None, None] + np.arange(TOP_K)) % EXPERTS
    trace = uvmsim.routing(np.repeat(ids, LAYERS, axis=1), n_experts=EXPERTS)
    return float(run(trace, nbytes, TOP_K, decision_ns, rate)["tokens_per_s"])


def mapped_share(trace: RoutingTrace, decision_ns: int, rate: float) -> float:
    """The share of all experts in the page cache that gives the published prefill."""
    low, high, all_of_it = 0.01, 1.0, LAYERS * EXPERTS * MXFP4
    for _ in range(12):
        share = (low + high) / 2
        tier = Tier("ssd", int(rate), LATENCY_NS, mode="mmap", ram_bytes=int(share * all_of_it))
        got = simulate(job_of(trace, MXFP4, TOP_K, decision_ns, tier)).to_json()["tokens_per_s"]
        low, high = (share, high) if got < PREFILL["mmap"] else (low, share)
    return (low + high) / 2


def main() -> None:
    result: dict[str, Any] = {"accesses": LAYERS * TOP_K * TOKENS}
    skew = {t: skew_for(TYPES[t]["hit_rate"], 24) for t in TYPES}
    decision_ns, rate = fit_types({t: routing(z) for t, z in skew.items()})
    result |= {"zipf": skew, "layer_ns_fitted": decision_ns, "disk_bytes_per_s_fitted": rate}
    slope = skew_for(SLOTS[24]["hit_rate"], 24)
    trace = routing(slope)
    result["zipf_44"] = slope
    rows = []
    for slots, published in SLOTS.items():
        got = run(trace, MXFP4, slots, decision_ns, rate)
        waits = sum(v for k, v in got["time_split_s"].items() if k != "compute")
        rows.append({
            "slots": slots, "published": published,
            "hit_rate": got["hit_rate"], "misses": got["misses"],
            "stall_ms": waits / (LAYERS * TOKENS) * 1e3, "tokens_per_s": got["tokens_per_s"],
        })  # fmt: skip
    result["slots"] = rows
    result["prefill_direct"] = prefill(MXFP4, decision_ns, rate)
    result["prefill_mmap_share"] = mapped_share(trace, decision_ns, rate)
    (HERE / "results.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
