"""What a fault trace says about paging: rates, chunk reuse, refaults, runs, bytes each way.

Definitions are in docs/traces.md. All is worked out with sorts over whole columns, so that a trace
of millions of events takes seconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from traces.faults import BLOCK, PAGE, FaultTrace
from traces.faults.whole import missing

STEPS = (-511, -16, -1, 0, 1, 2, 17, 512)
"""Lower bounds of the buckets of the step histogram, after the first one."""
STEP_NAMES = (
    *("<= -512", "-511 .. -17", "-16 .. -2", "-1", "0", "+1"),
    *("+2 .. +16", "+17 .. +511", ">= +512"),
)
FAULTS = ("gpu_fault", "cpu_fault")
INWARD, OUTWARD = ("migration_in", "prefetch"), ("migration_out", "eviction")


def fault_statistics(t: FaultTrace) -> dict[str, Any]:
    """Statistics as plain JSON types; parts that the trace has no events for are None."""
    time = t.numbers("time_ns")
    span = int(time.max() - time.min())
    codes, words = t.words("kind")
    kinds = {}
    for code, kind in enumerate(words):
        of = codes == code
        n = int(of.sum())
        if n:
            kinds[kind] = {
                "events": n,
                "per_s": _per_s(n, span),
                "blocks": _distinct(t.blocks[of & (t.blocks > 0)]),
                "chunks": _distinct(t.numbers("chunk")[of & t.present("chunk")]),
            }
    return {
        "events": t.n_rows,
        "span_ns": span,
        "kinds": kinds,
        "bytes": _bytes(t, span),
        "chunks": _chunks(t, span),
        "gpu_fault_pages": _runs(t, "gpu_fault", PAGE),
        "cpu_fault_pages": _runs(t, "cpu_fault", PAGE),
        "activated_blocks": _runs(t, "chunk_activate", BLOCK),
        "refaults": _refaults(t),
        "evictions": _evictions(t, span),
        "missing": missing(t).to_json(),
    }


def _per_s(n: float, span_ns: int) -> float | None:
    return n / span_ns * 1e9 if span_ns else None


def _distinct(values: np.ndarray) -> int:
    return len(np.unique(values))


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def _keys(t: FaultTrace, values: np.ndarray) -> np.ndarray:
    """int64 [rows]: numbers for values (addresses), different ones for different owners."""
    _, key = np.unique(values, return_inverse=True)
    owner = t.owners
    return key.reshape(-1).astype(np.int64) * (int(owner.max()) + 1) + owner


def _bytes(t: FaultTrace, span: int) -> dict[str, Any] | None:
    """Bytes to the GPU and back, by cause, and how long transfers took."""
    size, duration = t.numbers("bytes"), t.numbers("duration_ns")
    codes, words = t.words("cause")
    out: dict[str, Any] = {}
    for way, kinds in (("in", INWARD), ("out", OUTWARD)):
        of = t.where(*kinds)
        if not of.any():
            continue
        total, busy = int(size[of].sum()), int(duration[of].sum())
        by_cause: dict[str, dict[str, int]] = {}
        for code in np.unique(codes[of]).tolist():
            chosen = of & (codes == code)
            cause = words[code] if code >= 0 else "unknown"
            entry = by_cause.setdefault(cause, {"transfers": 0, "bytes": 0})
            entry["transfers"] += int(chosen.sum())
            entry["bytes"] += int(size[chosen].sum())
        out[way] = {
            "transfers": int(of.sum()),
            "bytes": total,
            "bytes_per_s": _per_s(total, span),
            "mean_bytes": total / int(of.sum()),
            "bytes_per_busy_s": _ratio(total * 1e9, busy),
            "causes": by_cause,
        }
    return out or None


def _chunks(t: FaultTrace, span: int) -> dict[str, Any] | None:
    """Activations, services and reuse of physical chunks."""
    activate = t.where("chunk_activate")
    activations = int(activate.sum())
    if not activations:
        return None
    accesses = int(t.where("chunk_access").sum())
    prepared = int(t.where("eviction_prepare").sum())
    out: dict[str, Any] = {
        "activations": activations,
        "activations_per_s": _per_s(activations, span),
        "accesses": accesses,
        "accesses_per_activation": _ratio(accesses, activations),
        "eviction_prepares": prepared,
        "activate_evict_ratio": _ratio(activations, prepared),
        "distinct_blocks": _distinct(t.blocks[activate]),
        "reuse": None,
    }
    chunked = activate & t.present("chunk")
    if chunked.any():
        chunk = t.numbers("chunk")[chunked]
        block = _keys(t, t.blocks)[chunked]
        time = t.numbers("time_ns")[chunked]
        distinct = _distinct(chunk)
        order = np.argsort(chunk, kind="stable")
        chunk, block, time = chunk[order], block[order], time[order]
        again = chunk[1:] == chunk[:-1]
        other = again & (block[1:] != block[:-1])
        lifetime = np.diff(time)[other]
        touched = t.where("chunk_access") & t.present("chunk")
        out |= {
            "distinct_chunks": distinct,
            "activations_per_chunk": len(chunk) / distinct,
            "accesses_per_chunk": _ratio(int(touched.sum()), distinct),
            "reuse": {
                "by_another_block": int(other.sum()),
                "by_the_same_block": int((again & ~other).sum()),
                "per_chunk": int(other.sum()) / distinct,
                "lifetime_ns": _quantiles(lifetime),
            },
        }
    return out


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    cuts = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = np.quantile(values, list(cuts.values()))
    return {
        "min": float(values.min()),
        **{k: float(v) for k, v in zip(cuts, found, strict=True)},
        "max": float(values.max()),
        "mean": float(values.mean()),
    }


def _runs(t: FaultTrace, kind: str, unit: int) -> dict[str, Any] | None:
    """Runs and steps of the pages, or blocks, that one kind of event concerns, in time order."""
    of = t.where(kind) & (t.present("address") | t.present("va_block"))
    if not of.any():
        return None
    where = t.blocks if unit == BLOCK else t.numbers("address")
    place = (where[of] // np.uint64(unit)).astype(np.int64)
    owner = t.owners[of]
    step = np.diff(place)
    same = owner[1:] == owner[:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~(same & (step == 1))]))
    lengths = np.diff(np.append(starts, len(place)))
    step = step[same]
    bucket = np.bincount(np.searchsorted(STEPS, step, side="right"), minlength=len(STEP_NAMES))
    n = len(step)
    return {
        "unit_bytes": unit,
        "events": len(place),
        "distinct": _distinct(_keys(t, where // np.uint64(unit))[of]),
        "runs": len(lengths),
        "mean_run": float(lengths.mean()),
        "median_run": float(np.median(lengths)),
        "longest_run": int(lengths.max()),
        "step_plus_one": _ratio(int((step == 1).sum()), n),
        "step_within_16": _ratio(int((np.abs(step) <= 16).sum()), n),
        "steps": {
            name: _ratio(int(c), n) for name, c in zip(STEP_NAMES, bucket.tolist(), strict=True)
        },
    }


def _refaults(t: FaultTrace) -> dict[str, Any] | None:
    """Blocks activated, and pages faulted on, that had been before."""
    out: dict[str, Any] = {}
    for name, kind, unit in (("blocks", "chunk_activate", BLOCK), ("pages", "gpu_fault", PAGE)):
        of = t.where(kind) & (t.present("address") | t.present("va_block"))
        n = int(of.sum())
        if not n:
            continue
        where = t.blocks if unit == BLOCK else t.numbers("address") // np.uint64(PAGE)
        counts = np.bincount(_keys(t, where)[of])
        counts = counts[counts > 0]
        out[name] = {
            "events": n,
            "again": n - len(counts),
            "share": (n - len(counts)) / n,
            "distinct": len(counts),
            "distinct_again": int((counts > 1).sum()),
            "most": int(counts.max()),
        }
    return out or None


def _evictions(t: FaultTrace, span: int) -> dict[str, Any] | None:
    """Evictions and their rate, from the most direct evidence that the trace has."""
    codes, words = t.words("cause")
    caused = codes == words.index("eviction") if "eviction" in words else np.zeros(t.n_rows, bool)
    for source, of in (
        ("eviction", t.where("eviction")),
        ("eviction_prepare", t.where("eviction_prepare")),
        ("migration_out with cause eviction", t.where("migration_out") & caused),
    ):
        n = int(of.sum())
        if n:
            gaps = np.diff(t.numbers("time_ns")[of])
            return {
                "events": n,
                "source": source,
                "per_s": _per_s(n, span),
                "bytes": int(t.numbers("bytes")[of].sum()) or None,
                "gap_ns": _quantiles(gaps),
            }
    return None
