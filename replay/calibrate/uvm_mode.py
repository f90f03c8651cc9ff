"""What page faults and soft evictions cost the replay engine in mode ``managed``.

In that mode a wave's victims are prefetched to the host first, its kernels wait for that, and then
fault in the experts that are missing. Several experts faulted in by one kernel are served together,
so a fault's time is a table over their number, not a constant. Synthetic routing (every number of
missing experts, steady and at random, with victims and without) gives two equations a run, one for
the time in kernels and one for the time they waited; the increments of the table and the price of an
eviction are the non-negative solution with the least error relative to the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from replay.calibrate.stats import Row, non_negative, row
from replay.calibrate.synthetic import Shape, from_ids, model
from uvmsim.machine.hardware import Hardware
from uvmsim.runs.job import Job

GPT_OSS, SMALL = 13_219_200, 4 << 20
TOP_K = 4
COLD = 5
"""First steps left out of runs in which the pool fills up first."""
UVM = "uvm_mode"
"""The table's name, and the prefix of what was fitted to it."""


@dataclass(frozen=True)
class Plain:
    """One run on managed memory."""

    run: str
    """``steady``: ``missing`` experts of every layer in every step, and as many victims;
    ``filling``: the same with room for all, until all are there; ``random``: any ``TOP_K``."""
    missing: int = 0
    slots: int = 0
    """Experts the pool holds, a layer."""
    expert_bytes: int = GPT_OSS
    layers: int = 8
    n_experts: int = 16
    steps: int = 19
    dtype: str = "mxfp4"
    dense_bytes: int = 30_000_000

    @property
    def cold(self) -> int:
        return 1 if self.run == "filling" else COLD


def plains(quick: bool) -> list[Plain]:
    """What is run; all of one expert size share their memory (1.7 GB at the full size)."""
    filling = [Plain("filling", 1, 16, steps=12), Plain("filling", 4, 16, steps=4)]
    steady = [Plain("steady", m, TOP_K) for m in range(TOP_K + 1)]
    mixed = [Plain("random", 0, 4, steps=25), Plain("random", 0, 8, steps=25)]
    small = [Plain("steady", m, TOP_K, SMALL) for m in (0, 2, 4)]
    runs = filling + steady + mixed + small
    if not quick:
        return runs
    return [
        replace(p, expert_bytes=p.expert_bytes >> 8, layers=2, dtype="fp32", dense_bytes=65536)
        for p in runs
    ]


def job(p: Plain, hardware: Hardware) -> Job:
    """The run as a job; experts are numbered at random, so that neighbours do not move together."""
    from uvmsim.policies.registry import parse

    shape = Shape("expert-cache", p.expert_bytes, p.dense_bytes, TOP_K, layers=p.layers,
                  steps=p.steps, dtype=p.dtype)  # fmt: skip
    return Job(
        from_ids(_ids(p), p.n_experts), model(shape, p.n_experts), hardware,
        policy=parse("lru"), slots=p.slots * p.layers,
    )  # fmt: skip


def _ids(p: Plain) -> np.ndarray:
    rng = np.random.default_rng([p.missing, p.slots, p.steps])
    names = np.stack([rng.permutation(p.n_experts) for _ in range(p.layers)])
    fixed = TOP_K - p.missing
    ids = np.empty((p.steps, p.layers, TOP_K), np.int32)
    for step in range(p.steps):
        for layer in range(p.layers):
            if p.run == "random":
                chosen = rng.permutation(p.n_experts)[:TOP_K]
            else:
                turning = max(p.n_experts - fixed, 1)
                moving = fixed + (step * p.missing + np.arange(p.missing)) % turning
                chosen = np.concatenate((np.arange(fixed), moving))
            ids[step, layer] = layer * p.n_experts + np.sort(names[layer, chosen])
    return ids


@dataclass(frozen=True)
class Moves:
    """What each wave of a job moves: int64 [W] each; ``step`` is the forward pass it belongs to."""

    missing: np.ndarray
    leaving: np.ndarray
    missing_bytes: np.ndarray
    leaving_bytes: np.ndarray
    step: np.ndarray
    prefetched: int
    """Bytes of prefetches, in all."""


def moves(job: Job) -> Moves:
    """From the expert cache's plan. Raises `DoesNotFit`."""
    from uvmsim.mechanisms import planned
    from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK

    plan = planned("expert-cache").plan(replace(job, write_back=True))
    n = len(plan.wave_event)
    wave = np.searchsorted(plan.wave_copy_hi, np.arange(len(plan.copy_bytes)), side="right")

    def of(kind: int, weights: np.ndarray | None = None) -> np.ndarray:
        mine = plan.copy_kind == kind
        each = None if weights is None else weights[mine]
        return np.bincount(wave[mine], each, n).astype(np.int64)

    return Moves(
        of(DEMAND), of(WRITEBACK), of(DEMAND, plan.copy_bytes), of(WRITEBACK, plan.copy_bytes),
        np.searchsorted(plan.step_wave_hi, np.arange(n), side="right"), plan.bytes_of(PREFETCH),
    )  # fmt: skip


def uvm_runs(backend: str, quick: bool) -> list[Row]:
    """One row a run: means over its warm steps of the step, of the time its kernels waited, of the
    host's share, and of what moved (`fit` reads it)."""
    from replay.backend import backend as open_backend
    from replay.session import Session

    with Session(open_backend(backend)) as session:
        return [measure(session, p) for p in plains(quick)]


def measure(session: Any, p: Plain) -> Row:
    """The row of one run."""
    from replay.results import replayed, verified
    from replay.session import How

    made = job(p, Hardware.load("h100"))  # what the engine does is no business of it
    done = session.run(made, "managed", How(dtype=p.dtype))
    m = replayed(done).measured
    assert m.stall_ns is not None  # `How` asks for details
    found = moves(made)
    warm = found.step >= p.cold
    steps = p.steps - p.cold
    return {
        **{k: getattr(p, k) for k in Plain.__dataclass_fields__},
        "events_with": [float((found.missing[warm] >= i + 1).sum() / steps) for i in range(TOP_K)],
        "evict_events": float((found.leaving[warm] > 0).sum() / steps),
        "evictions": float(found.leaving[warm].sum() / steps),
        "step_ns": float(np.mean(done.step_ns[p.cold :])),
        "stall_ns": float(np.mean(m.stall_ns[p.cold :])),
        "issue_ns": float(np.mean(m.issue_ns[p.cold :])),
        "verified": verified(done),
        **row(done.step_ns[p.cold :]),
    }


def fit(rows: Sequence[Row]) -> dict[str, tuple[Any, str]]:
    """``uvm_mode.*`` -> (value, how it was found); adds ``fitted_ns`` (of a step) to the rows.

    ``fault_ns`` [`TOP_K`]: a kernel's faulting in 1, 2, ... experts of ``expert_bytes``;
    ``evict_event_ns`` + ``evict_ns`` an expert: what kernels wait for victims. ``*_fixed_share``: the
    part of either that does not shrink with the expert. Raises `ValueError` without usable runs.
    """
    usable = [r for r in rows if r["verified"]]
    size = max((r["expert_bytes"] for r in usable), default=0)
    base = {
        r["expert_bytes"]: r["step_ns"] - r["stall_ns"]
        for r in usable if r["run"] == "steady" and r["missing"] == 0
    }  # fmt: skip
    moving = [
        r for r in usable if r["expert_bytes"] == size and (r["missing"] or r["run"] == "random")
    ]
    # While the pool fills up the driver allocates as well; that is compared, not fitted.
    large = [r for r in moving if r["run"] != "filling"]
    if size not in base or len(large) < 3:
        raise ValueError("too few usable runs on managed memory")
    a, b = [], []
    for r in large:
        t = r["step_ns"]
        a.append([x / t for x in (*r["events_with"], 0.0, 0.0)])
        b.append((t - r["stall_ns"] - base[size]) / t)
        a.append([x / t for x in (*([0.0] * TOP_K), r["evict_events"], r["evictions"])])
        b.append(r["stall_ns"] / t)
    x = non_negative(np.array(a), np.array(b))
    table = np.cumsum(x[:TOP_K])

    def split(r: Row) -> tuple[float, float]:
        return float(x[:TOP_K] @ r["events_with"]), float(
            x[TOP_K] * r["evict_events"] + x[TOP_K + 1] * r["evictions"]
        )

    for r in moving:
        r["fitted_ns"] = round(base[size] + sum(split(r)), 1)
    off = [abs(r["fitted_ns"] / r["step_ns"] - 1) for r in large]
    shares: list[list[float]] = [[], []]
    for r in usable:
        if r["expert_bytes"] == size or not r["missing"] or r["expert_bytes"] not in base:
            continue
        scale = r["expert_bytes"] / size
        measured = (r["step_ns"] - r["stall_ns"] - base[r["expert_bytes"]], r["stall_ns"])
        for share, got, whole in zip(shares, measured, split(r), strict=True):
            if whole > 0:
                share.append(min(max((got / whole - scale) / (1 - scale), 0.0), 1.0))
    how = (
        f"fitted to {len(large)} runs of the replay engine on managed memory, synthetic routing, "
        f"experts of {size:,} bytes (worst run {max(off):.1%} off)"
    )
    fixed = [round(float(np.mean(s)), 4) if s else 0.0 for s in shares]
    values = {
        "expert_bytes": size,
        "fault_ns": [round(float(v)) for v in table],
        "evict_event_ns": round(float(x[TOP_K])),
        "evict_ns": round(float(x[TOP_K + 1])),
        "fault_fixed_share": fixed[0],
        "evict_fixed_share": fixed[1],
    }
    return {f"{UVM}.{k}": (v, how) for k, v in values.items()}
