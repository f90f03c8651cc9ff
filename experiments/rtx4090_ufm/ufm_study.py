"""The rows of the study: the published table simulated, and what nobody ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ufm_manager
import ufm_model as m

import uvmsim
from uvmsim.runs.played import late_waits, time_split

PUBLISHED = Path(__file__).with_name("published.json")

FITTED_SPEED = {
    (48, "baseline"): "expert_call_ns, step_ns",
    (96, "baseline"): "expert_call_ns, step_ns",
    (144, "naive_offload"): "pageable_d2h_bytes_per_s",
    (144, "ufm"): "pinned_alloc_bytes_per_s",
}
FITTED_PEAK = {(48, "naive_offload"): "workspace_gib", (144, "ufm"): "tries"}
"""Rows a constant was fitted on; all others are predicted."""

KEPT: dict[str, Any] = {"policy": "lru", "write_back": True}
BEST: dict[str, Any] = {"slots": m.slots_within(m.TARGET_GIB)}
WIDE: dict[str, Any] = {"slots": m.slots_within(21)}
UNRUN: dict[str, dict[str, Any]] = {
    "lru, as published": m.UFM,
    "lru, write-back into buffers that are kept": BEST | KEPT,
    "lru, no write-back": BEST | {"policy": "lru"},
    "lru, no write-back, next expert prefetched": BEST | {"policy": "lru+oracle:horizon=1"},
    "mru, write-back and allocation": m.UFM | {"policy": "mru"},
    "mru, no write-back": BEST | {"policy": "mru"},
    "belady (bound), no write-back": BEST | {"policy": "belady"},
    "21 GiB: lru, as published": m.UFM | WIDE,
    "21 GiB: lru, no write-back": WIDE | {"policy": "lru"},
    "21 GiB: mru, no write-back": WIDE | {"policy": "mru"},
    "all VRAM: mru, no write-back": {"policy": "mru"},
}
"""Nobody ran these but the first: label -> fields of the job."""


def study(engine: str = "fast") -> dict[str, Any]:
    """All numbers, as plain JSON types; the same every time."""
    published = json.loads(PUBLISHED.read_text())
    hw = m.machine()
    return {
        "uvmsim": uvmsim.__version__,
        "published": published["source"],
        "constants": {
            "fitted": {
                "expert_call_ns": m.EXPERT_CALL_NS,
                "step_ns": m.STEP_NS,
                "pageable_d2h_bytes_per_s": hw.pageable_d2h_bytes_per_s,
                "pinned_alloc_bytes_per_s": hw.pinned_alloc_bytes_per_s,
                "workspace_gib": m.WORKSPACE_GIB,
                "tries": ufm_manager.TRIES,
            },
            "hardware": {k: v for k, v, _ in hw.quantities() if not k.startswith("uvm.")}
            | {k: v for k, v, _ in hw.engine.quantities()},
        },
        "table": [row(p, engine) for p in published["rows"]],
        "unrun": [unrun(n, label, engine) for n, label in unrun_rows()],
    }


def unrun_rows() -> list[tuple[int, str]]:
    """At 144 experts whatever holds more than 144 is one row: nothing leaves any more."""
    wide = [label for label in UNRUN if "GiB" in label or "VRAM" in label]
    return [(144, x) for x in UNRUN if x not in wide[1:]] + [(192, x) for x in UNRUN]


def row(p: dict[str, Any], engine: str) -> dict[str, Any]:
    """One published number against the simulator's."""
    n, mode = p["experts"], p["mode"]
    key = (n, mode)
    r = m.MODES[mode].run(n, engine)
    out: dict[str, Any] = {
        "experts": n,
        "mode": mode,
        "published_tokens_per_s": p.get("tokens_per_s"),
        "published_peak_gib": p.get("peak_gib"),
        "published_out_of_memory": p.get("out_of_memory", False),
        "speed_fits": FITTED_SPEED.get(key),
        "peak_fits": FITTED_PEAK.get(key),
        "out_of_memory": r.does_not_fit is not None,
    }
    if r.does_not_fit is not None:
        return out | {"peak_gib": gib(r.does_not_fit.needed)}
    speed = m.tokens_per_s(r)
    hits, accesses = m.measured_accesses(r)
    return out | {
        "tokens_per_s": speed,
        "error": speed / p["tokens_per_s"] - 1 if "tokens_per_s" in p else None,
        "peak_gib": peak(mode, n),
        "hits": hits,
        "accesses": accesses,
    }


def peak(mode: str, n: int) -> float:
    """Most device memory in GiB: experts at once, the router and the workspace."""
    j = m.job(n)
    at_once = {"baseline": n, "naive_offload": 1}.get(mode) or overshoot(n, m.UFM["slots"])
    return gib(at_once * m.EXPERT_BYTES + sum(j.model.dense_bytes))


def overshoot(n: int, slots: int) -> int:
    """Most experts that UFM's list keeps at once for a target of ``slots``."""
    return ufm_manager.replay(m.workload(n).ids.tolist(), n, slots).peak


def gib(nbytes: int) -> float:
    """With the workspace, which the simulated machine does not count as its own."""
    return nbytes / m.GIB + m.WORKSPACE_GIB


def unrun(n: int, label: str, engine: str) -> dict[str, Any]:
    """A policy, a write-back or a target that the benchmark did not have."""
    r = m.Mode("expert-cache", UNRUN[label]).run(n, engine)
    assert r.trail.plan is not None and r.trail.timeline is not None
    hits, accesses = m.measured_accesses(r)
    c = r.trail.plan.slots
    cyclic = 1.0 if c >= n else 0.0 if label_is_lru(label) else (c - 1) / (n - 1)
    return {
        "experts": n,
        "label": label,
        "slots": c,
        "hits": hits,
        "accesses": accesses,
        "hit_rate": hits / accesses,
        "cyclic_hit_rate": cyclic,
        "late": late_waits(r.trail.plan, r.trail.timeline),
        "tokens_per_s": m.tokens_per_s(r),
        "time_split_s": {
            k: round(v, 9) for k, v in time_split(r.trail.plan, r.trail.timeline).items()
        },
    }


def label_is_lru(label: str) -> bool:
    """Whether the row's policy is LRU, which a cyclic scan defeats."""
    return str(UNRUN[label]["policy"]).startswith("lru")
