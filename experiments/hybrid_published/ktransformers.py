"""KTransformers' table: experts placed beforehand, the GPUs' share of them by how they were chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import uvmsim
from traces.routing import RoutingTrace, routing
from traces.synth.generate import independent, zipf_logits
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model

MODEL = Path(__file__).parent / "models" / "qwen3-next-80b-a3b-fp8.toml"
GPUS = 4
PROMPT, TOKENS = 1024, 200
"""The prompt brings in what was placed on the GPU; then tokens one by one, of which the median counts:
a placed expert that is used for the first time is still copied."""
COLUMNS = {"random": "random", "uniform": "uniform", "frequency": "frequency", "front": "front"}
SKEW_CELL = ("frequency", 50)
SYNC_CELL = ("random", 90)


@dataclass(frozen=True)
class Fitted:
    """Constants that were fitted, and nothing else was."""

    dense_launch_ns: int
    cpu_bytes_per_s: int
    zipf: float
    cpu_sync_ns: int


def machine(f: Fitted) -> Hardware:
    """Four RTX 4090 as one of four times the memory speed and size, with the CPU as fitted."""
    one = Hardware.load("rtx4090", program="estimated")
    engine = replace(
        one.engine, dense_launch_ns=f.dense_launch_ns, cpu_sync_ns=f.cpu_sync_ns, decision_ns=0
    )
    return replace(
        one, name="4x rtx4090", engine=engine, vram_bytes=GPUS * one.vram_bytes,
        memory_bytes_per_s=GPUS * one.memory_bytes_per_s,
        compute_flops=GPUS * one.compute_flops, cpu_bytes_per_s=f.cpu_bytes_per_s,
    )  # fmt: skip


def traces(zipf: float) -> tuple[RoutingTrace, RoutingTrace]:
    """What is run, and what was seen before: drawn from one popularity, token by token."""
    m = Model.load(str(MODEL))
    synth = independent(zipf_logits(m.n_layers, m.n_experts, zipf, 0), m.top_k)
    both = [
        synth.generate(np.array([0, n]), seed) for seed, n in ((1, PROMPT + TOKENS), (2, PROMPT))
    ]
    (ids, w), (seen, v) = both
    return (
        routing(ids, m.n_experts, weights=w, prefill=PROMPT, ranked=True),
        routing(seen, m.n_experts, weights=v, prefill=PROMPT, ranked=True),
    )


def tokens_per_s(
    f: Fitted, pair: tuple[RoutingTrace, RoutingTrace], column: str, share: int
) -> float:
    """Decode speed of one cell; none on the GPU is every layer's experts on the CPU."""
    run, seen = pair
    m = Model.load(str(MODEL))
    total = m.n_layers * m.n_experts
    asked = uvmsim.Scenario(run, model=m, hardware=machine(f))
    if share == 0:
        asked = asked.with_(mechanisms="cpu-offload")
    elif share == 100:
        asked = asked.with_(mechanisms="resident")
    else:
        asked = asked.with_(
            slots=round(total * share / 100), profile=seen, scratch=0,
            policies=f"static-placement:place={COLUMNS[column]}",
        )  # fmt: skip
    steps = uvmsim.compare(asked).runs[0].step_ns[1:]  # without the prompt
    return 1e9 / float(np.median(steps))


def fit(published: dict[str, Any], sync_ns: int | None) -> Fitted:
    """The GPU's launches on the 100 % row, the CPU's rate on the 0 % row (means of the three columns),
    the skew on `SKEW_CELL`; with ``sync_ns`` None that too, on `SYNC_CELL`."""
    columns = ("random", "uniform", "frequency")
    mean = {i: float(np.mean([published[c][i] for c in columns])) for i in (0, -1)}
    m = Model.load(str(MODEL))
    f = Fitted(0, 10**15, 0.6, sync_ns or 0)
    pair = traces(f.zipf)
    missing = 1e9 / mean[-1] - 1e9 / tokens_per_s(f, pair, "random", 100)
    f = replace(f, dense_launch_ns=round(missing / (m.n_layers + 1)))

    def with_sync(f: Fitted, sync: int) -> Fitted:
        f = replace(f, cpu_sync_ns=sync, cpu_bytes_per_s=10**15)
        missing = 1e9 / mean[0] - 1e9 / tokens_per_s(f, pair, "random", 0)
        read = sum(m.expert_bytes) * m.top_k
        return replace(f, cpu_bytes_per_s=round(read / missing * 1e9))

    if sync_ns is not None:
        f = with_sync(f, sync_ns)
    else:
        column, share = SYNC_CELL
        want = published[column][published["shares"].index(share)]
        low, high = 0, 150_000
        for _ in range(9):
            mid = (low + high) // 2
            slow = tokens_per_s(with_sync(f, mid), pair, column, share) < want
            low, high = (low, mid) if slow else (mid, high)
        f = with_sync(f, (low + high) // 2)
    column, share = SKEW_CELL
    want = published[column][published["shares"].index(share)]
    low_z, high_z = 0.0, 2.0
    for _ in range(8):
        z = (low_z + high_z) / 2
        slow = tokens_per_s(f, traces(z), column, share) < want
        low_z, high_z = (z, high_z) if slow else (low_z, z)
    return replace(f, zipf=(low_z + high_z) / 2)


def study(published: dict[str, Any], sync_ns: int | None) -> dict[str, Any]:
    """Every cell, published and simulated, and the constants."""
    f = fit(published, sync_ns)
    pair = traces(f.zipf)
    cells = []
    for column in COLUMNS:
        for i, share in enumerate(published["shares"]):
            got = tokens_per_s(f, pair, column, share)
            known = published.get(column)
            fitted = share in (0, 100) or (column, share) == SKEW_CELL
            fitted = fitted or (sync_ns is None and (column, share) == SYNC_CELL)
            cells.append(
                {
                    "column": column, "share": share, "simulated": got,
                    "fitted": fitted and known is not None,
                    "published": known[i] if known else None,
                    "error": got / known[i] - 1 if known else None,
                }
            )  # fmt: skip
    off = [abs(c["error"]) for c in cells if c["error"] is not None and not c["fitted"]]
    return {
        "constants": vars(f), "cells": cells, "predicted": len(off),
        "mean_error": float(np.mean(off)), "worst_error": float(np.max(off)),
    }  # fmt: skip
