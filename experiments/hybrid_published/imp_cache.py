"""imp's table: an LRU of expert matrices in VRAM, all experts on the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import uvmsim
from traces.routing import RoutingTrace, routing
from traces.synth.generate import with_overlap, zipf_logits
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.runs.played import Played

MATRICES = 3
"""Gate, up and down of an expert have slots of their own: 244 slots a layer for 128 experts, and a
token's 8 x 3 = 24 are where the table's cliff is."""
TOKENS, WARM, ZIPF = 2000, 100, 0.6
SPEED_ROWS = (24, 244)
"""Slots of the two rows that constants of time are fitted on."""


def within(ids: np.ndarray, n_experts: int, tokens: int) -> float:
    """Share of choices whose expert one of the ``tokens`` before used in the same layer."""
    used = np.zeros((len(ids), ids.shape[1], n_experts), bool)
    np.put_along_axis(used, ids.astype(np.int64), True, axis=2)
    recent = np.zeros_like(used)
    for lag in range(1, tokens + 1):
        recent[lag:] |= used[:-lag]
    return float(np.take_along_axis(recent, ids.astype(np.int64), axis=2)[tokens:].mean())


def chosen(published: dict[str, Any], model: Model) -> tuple[np.ndarray, dict[str, float]]:
    """Routing with the published repeat on the next token, and a topic under which as many choices
    repeat within 8 tokens as published: ids [tokens, layers, k] and its statistics."""
    logits = zipf_logits(model.n_layers, model.n_experts, ZIPF, 0)
    low, high = 0.05, published["repeat_next_token"]
    for _ in range(7):
        topic = (low + high) / 2
        few = with_overlap(logits[:6], model.top_k, published["repeat_next_token"], topic, 0)
        ids, _ = few.generate(np.array([0, TOKENS]), 1)
        less = within(ids, model.n_experts, 8) < published["repeat_within_8"]
        # The more of the choice lasts as long as the text, the more of it comes again within 8 tokens.
        low, high = (topic, high) if less else (low, topic)
    synth = with_overlap(logits, model.top_k, published["repeat_next_token"], topic, 0)
    ids, _ = synth.generate(np.array([0, TOKENS]), 1)
    n = model.n_experts
    return ids, {
        "topic": topic,
        "zipf": ZIPF,
        "repeat_1": within(ids, n, 1),
        "repeat_8": within(ids, n, 8),
    }


def by_matrix(ids: np.ndarray, n_experts: int) -> RoutingTrace:
    """The same with each matrix as an expert of its own: the gates of a token's experts, then the ups,
    then the downs, as kernels ask for them."""
    t, layers, k = ids.shape
    apart = ids[:, :, None, :].astype(np.int32) * MATRICES + np.arange(MATRICES)[:, None]
    return routing(apart.reshape(t, layers, k * MATRICES), n_experts * MATRICES)


def matrices(m: Model) -> Model:
    """The model with each matrix as an expert."""
    return replace(
        m, name=f"{m.name}, by matrix", n_experts=m.n_experts * MATRICES, top_k=m.top_k * MATRICES,
        expert_bytes=tuple(b // MATRICES for b in m.expert_bytes),
        expert_params=tuple(p // MATRICES for p in m.expert_params),
    )  # fmt: skip


def study(published: dict[str, Any]) -> dict[str, Any]:
    """Every row, published and simulated, and the constants."""
    model = Model.load("qwen3-30b-a3b")
    ids, stats = chosen(published, model)
    trace, apart = by_matrix(ids, model.n_experts), matrices(model)
    ascending = by_matrix(np.sort(ids, axis=2), model.n_experts)
    hw = Hardware.load("rtx5090", program="estimated")
    none = replace(hw.engine, decision_ns=0, dense_launch_ns=0, expert_launch_ns=0)

    def run(hw: Hardware, slots: int, of: RoutingTrace = trace) -> tuple[float, float]:
        """Hit rate and ns a token, after the first `WARM` tokens."""
        asked = uvmsim.Scenario(
            of, model=apart, hardware=hw, unit="access", pool="per-layer", policies="lru",
            slots=slots * model.n_layers,
        )  # fmt: skip
        out = uvmsim.compare(asked).runs[0]
        assert isinstance(out.trail, Played)
        hits = out.trail.plan.hit.reshape(TOKENS, -1)[WARM:]
        return float(hits.mean()), float(out.step_ns[WARM:].mean())

    calls = model.n_layers * model.top_k * MATRICES
    all_in, copied = (run(replace(hw, engine=none), n)[1] for n in (apart.n_experts, 1))
    read = (copied - all_in) / calls  # a matrix over the link
    launch = max(0.0, 1e9 / published["resident"] - all_in) / (model.n_layers + 1)
    all_in += launch * (model.n_layers + 1)
    rows = {r["slots"]: r for r in published["rows"]}
    missed = {n: calls * (1 - r["hits"] / 100) for n, r in rows.items()}
    left = [1e9 / rows[n]["tokens_per_s"] - all_in - missed[n] * read for n in SPEED_ROWS]
    miss, call = np.linalg.solve([[missed[n], calls] for n in SPEED_ROWS], left)
    engine = replace(none, dense_launch_ns=round(launch), expert_launch_ns=round(call))
    fitted = replace(hw, engine=engine, copy_latency_ns=hw.copy_latency_ns + round(miss))
    made = []
    for r in published["rows"]:
        hit, ns = run(fitted, r["slots"])
        given = all_in + calls * call + missed[r["slots"]] * (read + miss)
        made.append(
            r
            | {
                "simulated_hits": 100 * hit, "speed_fitted": r["slots"] in SPEED_ROWS,
                "ascending_hits": 100 * run(fitted, r["slots"], ascending)[0],
                "with_published_hits": 1e9 / given, "simulated": 1e9 / ns,
            }
        )  # fmt: skip
    constants = {
        "dense_launch_ns": round(launch), "expert_launch_ns": round(call), "miss_ns": round(miss),
    }  # fmt: skip
    return {"constants": constants, "matrix_copy_ns": read, "routing": stats, "rows": made}
