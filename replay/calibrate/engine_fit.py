"""The replay engine on made-up routing, and the constants with which the time model meets it.

The time model (docs/model-of-time.md) of a step without prefetch is a sum: launches of dense work,
dense bytes over memory speed, decisions, copies with a latency each, bytes over the link, launches
of expert work, expert bytes over memory speed. Runs that vary each of these by itself make that sum
a system of linear equations in the machine's constants, solved for the least relative error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replay.calibrate.profile import Measurements
from replay.calibrate.stats import Row, non_negative, row
from replay.calibrate.synthetic import Shape, job
from traces.errors import InputError

GPT_OSS = 13_219_200
COLD = 5
"""First steps left out: the pool fills, kernels load."""
TERMS = (
    "dense_launch_ns", "expert_launch_ns", "decision_ns", "copy_latency_ns",
    "ns_per_dense_byte", "ns_per_expert_byte", "ns_per_link_byte",
)  # fmt: skip


def shapes(quick: bool, dtype: str = "mxfp4") -> list[Shape]:
    """What is run: every constant is large in some of them and absent or small in others."""
    if quick:
        small = 64 * 1024
        how: dict[str, Any] = {"layers": 2, "steps": 12, "dtype": "fp32"}
        return [
            Shape("resident", small, small, 2, **how),
            Shape("resident", small, 16 * small, 1, **how),
            Shape("expert-cache", small, small, 2, 0, **how),
            Shape("expert-cache", small, small, 2, 1, **how),
            Shape("expert-cache", small, small, 2, 2, **how),
            Shape("expert-cache", 4 * small, small, 2, 2, **how),
            Shape("resident", 16 * small, small, 2, **how),
            Shape("expert-cache", 16 * small, small, 2, 2, **how),
            Shape("stream", small, small, 2, **how),
        ]
    dense = 30_000_000
    how = {"dtype": dtype}
    return [
        Shape("resident", GPT_OSS, dense, 4, **how),
        Shape("resident", GPT_OSS, dense, 1, **how),
        Shape("resident", GPT_OSS, 120_000_000, 4, **how),
        Shape("resident", 4 * GPT_OSS, dense, 4, layers=4, **how),
        Shape("expert-cache", GPT_OSS, dense, 4, 0, **how),
        Shape("expert-cache", GPT_OSS, dense, 4, 1, **how),
        Shape("expert-cache", GPT_OSS, dense, 4, 2, **how),
        Shape("expert-cache", GPT_OSS, dense, 4, 4, **how),
        Shape("expert-cache", 4 << 20, dense, 4, 4, **how),
        Shape("expert-cache", 4 * GPT_OSS, dense, 2, 2, layers=4, **how),
        Shape("stream", GPT_OSS, dense, 4, steps=20, **how),
    ]


def terms(s: Shape) -> list[float]:
    """How often each of `TERMS` enters one step of the shape."""
    cached, stream = s.mode == "expert-cache", s.mode == "stream"
    copies = s.layers * (s.top_k if stream else s.missing)
    dense = (s.layers + 1) * s.dense_bytes
    return [
        s.layers + 1,
        s.layers * (s.top_k if stream else 1),
        s.layers if cached else 0,
        copies,
        dense,
        s.layers * s.top_k * s.expert_bytes,
        copies * s.expert_bytes,
    ]


def engine_runs(backend: str, quick: bool) -> list[Row]:
    """One row a shape: duration of a step, the host's share of it, and the shape."""
    from replay.backend import backend as open_backend
    from replay.results import replayed, verified
    from replay.session import How, Session
    from uvmsim.machine.hardware import Hardware

    hardware = Hardware.load("h100")  # what the engine does is no business of it
    rows = []
    with Session(open_backend(backend)) as session:
        for shape in shapes(quick):
            try:
                done = session.run(job(shape, hardware), shape.mode, How(dtype=shape.dtype))
            except InputError:
                continue  # too large for this card or this host; the others say enough
            if done.does_not_fit is not None:
                continue
            about = {k: getattr(shape, k) for k in Shape.__dataclass_fields__}
            issue = float(np.median(replayed(done).measured.issue_ns[COLD:]))
            rows.append(
                {**about, "verified": verified(done), "issue_ns": issue, **row(done.step_ns[COLD:])}
            )
    return rows


def fit(rows: list[Row], found: Measurements) -> dict[str, tuple[Any, str]]:
    """Field of the profile -> (value, how it was found); adds ``fitted_ns`` to the rows.

    Rows whose host needed as long as the step says nothing about the device and are left out, and
    so is the pair of link constants where copies never mattered. Raises `ValueError` where too few
    rows remain.
    """
    usable = [r for r in rows if r["verified"] and not (found.backend == "cuda" and host_bound(r))]
    if len(usable) < 4:
        raise ValueError(f"only {len(usable)} usable runs of the engine")
    rows_terms = np.array([terms(_shape(r)) for r in rows], np.float64)
    a = rows_terms[[i for i, r in enumerate(rows) if r in usable]]
    took = np.array([r["median_ns"] for r in usable], np.float64)
    x = non_negative(a / took[:, None], np.ones(len(took)))
    off = a @ x / took - 1
    for r, t in zip(rows, rows_terms, strict=True):
        r["fitted_ns"] = round(float(t @ x), 1)
    values = dict(zip(TERMS, x.tolist(), strict=True))
    how = (
        f"fitted with the other constants of the time model to {len(usable)} runs of the replay "
        f"engine on synthetic routing (worst run {np.abs(off).max():.1%} off)"
    )
    made: dict[str, tuple[Any, str]] = {
        k: (round(values[k]), how) for k in TERMS if k.endswith("_ns")
    }
    rates = {
        "ns_per_expert_byte": "expert_bytes_per_s",
        "ns_per_dense_byte": "dense_bytes_per_s",
        "ns_per_link_byte": "h2d_bytes_per_s",
    }
    for term, field in rates.items():
        if values.get(term, 0) > 0:
            made[field] = (round(1e9 / values[term]), how)
    if "h2d_bytes_per_s" not in made:
        made.pop("copy_latency_ns")
    flops = compute_flops(found.tables.get("kernels", []))
    if flops:
        made["compute_flops"] = flops
    return made


def host_bound(r: Row) -> bool:
    """Whether queueing the step took the host (nearly) as long as the device took to run it."""
    return bool(r["issue_ns"] > 0.9 * r["median_ns"])


def compute_flops(rows: list[Row]) -> tuple[int, str] | None:
    """Operations a second of the expert kernel with many tokens: median over its largest batches."""
    many = [r for r in rows if r.get("tokens", 0) >= 32]
    if not many:
        return None
    rates = [r["flops"] / r["median_ns"] * 1e9 for r in many]
    return round(float(np.median(rates))), (
        f"the engine's expert kernel with {min(r['tokens'] for r in many)} to "
        f"{max(r['tokens'] for r in many)} tokens an expert; median of {len(many)} "
        f"({min(rates) / 1e12:.3g} to {max(rates) / 1e12:.3g} TFLOPS by type and batch)"
    )


def _shape(r: Row) -> Shape:
    return Shape(**{k: r[k] for k in Shape.__dataclass_fields__})
