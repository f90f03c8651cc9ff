"""The UFM benchmark as jobs of the simulator: workload, expert bank, machine, modes.

One MoE layer of fp32 experts (d_model 2048, d_hidden 8192), top-2, an untrained router on random
tokens, 4 x 128 = 512 tokens a step, 3 steps of which the last 2 count. PyTorch calls one expert after
the other in the order of their numbers, so every expert is an event of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from traces.files.schema import PREFILL, RoutingMeta
from traces.models.info import ModelInfo
from traces.routing import RoutingTrace
from uvmsim.machine.engine import EngineProfile
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome
from uvmsim.studies.simulate import simulate
from uvmsim.workload import Workload, build_workload

COUNTS = (48, 96, 144, 192)
D_MODEL, D_HIDDEN, TOP_K = 2048, 8192, 2
EXPERT_BYTES = 2 * D_MODEL * D_HIDDEN * 4
SEQUENCES, LENGTH, STEPS, WARM_UP = 4, 128, 3, 1
TOKENS = SEQUENCES * LENGTH
GIB = 2**30
TARGET_GIB = 15
"""vram_target_gb=16 less gpu_headroom_gb=1."""

WORKSPACE_GIB = 0.09
"""Device memory beside the experts: published peak of naive_offload at 48 (0.215) less one expert."""
PROGRAM = EngineProfile.load("pytorch-ufm")
EXPERT_CALL_NS = PROGRAM.expert_launch_ns
"""Python, routing index and launches of one expert call. Fitted on baseline at 48 and 96 experts
(with `STEP_NS`): 0.2380 ms more for each expert, of which 0.1496 is reading its weights."""
STEP_NS = 2 * PROGRAM.dense_launch_ns
"""What a step costs whatever the number of experts; from the same two rows."""


def routing(n_experts: int, steps: int = STEPS, seed: int = 0) -> RoutingTrace:
    """Each token's two experts are drawn uniformly: what an untrained router does to noise."""
    rng = np.random.default_rng([seed, n_experts])
    rows = steps * TOKENS
    logits = rng.standard_normal((rows, n_experts), np.float32)
    experts = np.argsort(-logits, axis=1)[:, :TOP_K].astype(np.int16)
    row = np.arange(rows, dtype=np.int32)
    columns = {
        "seq": row // LENGTH,
        "pos": row % LENGTH,
        "step": row // TOKENS,
        "phase": np.full(rows, PREFILL, np.uint8),
        "layer": np.zeros(rows, np.int16),
        "experts": experts,
    }
    meta = RoutingMeta(model=info(n_experts), ids_order="ranked", tool="experiments/rtx4090_ufm")
    return RoutingTrace(columns, meta)


def info(n_experts: int) -> ModelInfo:
    """The expert bank; its dense part is the router."""
    return ModelInfo(
        name=f"ufm-bank-{n_experts}", n_layers=1, moe_layers=(0,), n_experts=n_experts, top_k=TOP_K,
        quantisation="F32", expert_bytes=(EXPERT_BYTES,), dense_bytes=(D_MODEL * n_experts * 4,),
        output_bytes=0, embedding_bytes=0, n_embd=D_MODEL, kv_bytes_per_token=0,
        source="Linutesto/ufm benchmarks/model.py",
    )  # fmt: skip


def one_by_one(w: Workload) -> Workload:
    """Every expert of an event as an event of its own, in the order of their numbers: a loop over
    experts, as PyTorch models have it. An expert that nobody chose is not called."""
    event = np.repeat(np.arange(w.n_events), np.diff(w.event_lo))
    order = np.lexsort((w.ids, event))
    ids, counts = w.ids[order], w.counts[order]
    return replace(
        w, ids=ids, counts=counts, event_lo=np.arange(len(ids) + 1, dtype=np.int64),
        event_layer=w.event_layer[event], event_step=w.event_step[event], event_tokens=counts,
        event_first=np.diff(event, prepend=-1) != 0, row_lo=np.zeros(len(ids) + 1, np.int64),
        scores=np.zeros((0, 0), np.float32),
    )  # fmt: skip


@cache
def workload(n_experts: int) -> Workload:
    """The benchmark's three steps."""
    return one_by_one(build_workload(routing(n_experts)))


def machine() -> Hardware:
    """The preset with the benchmark's own program (PyTorch, eager, fp32, a Python loop over
    experts) and what that keeps of the memory."""
    hw = Hardware.load("rtx4090", "pytorch-ufm")
    return replace(hw, vram_bytes=hw.vram_bytes - round(WORKSPACE_GIB * GIB))


def slots_within(gib: float) -> int:
    """Experts that a target of ``gib`` GiB holds."""
    return int(gib * GIB) // EXPERT_BYTES


def job(n_experts: int, **how) -> Job:
    """A run at one number of experts; ``how`` are fields of `Job`, the policy as text."""
    if "policy" in how:
        how["policy"] = parse(how["policy"])
    return Job(workload(n_experts), Model.from_info(info(n_experts)), machine(), **how)


@dataclass(frozen=True)
class Mode:
    """One column of the published table, or a row that nobody ran."""

    mechanism: str
    how: dict[str, Any]

    def run(self, n_experts: int, engine: str = "fast") -> Outcome:
        return simulate(job(n_experts, **self.how), self.mechanism, engine)


UFM: dict[str, Any] = {
    "policy": "lru", "slots": slots_within(TARGET_GIB), "write_back": True, "write_back_alloc": True,
}  # fmt: skip
MODES = {
    "baseline": Mode("resident", {}),
    "naive_offload": Mode("stream", {"write_back": True, "pinned": False}),
    "ufm": Mode("expert-cache", UFM),
}


def tokens_per_s(r: Outcome) -> float:
    """Over the measured steps, as the benchmark counts."""
    end = r.step_end
    return TOKENS * (STEPS - WARM_UP) / (int(end[-1] - end[WARM_UP - 1]) / 1e9)


def measured_accesses(r: Outcome) -> tuple[int, int]:
    """Hits and accesses of the measured steps."""
    assert r.trail.plan is not None
    w = r.job.workload
    mine = w.event_step >= WARM_UP
    return int(r.trail.plan.hit[mine].sum()), int(mine.sum())
