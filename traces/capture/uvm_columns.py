"""Entries of the paging driver's event queue as columns of a fault trace.

One row an entry of the fault buffer, with its ``batch``, the ``client`` that faulted (GPC << 16 | MMU
client) and the GPU's own time of it (``gpu_time_ns``); one a migration, whose duration is the copy
engine's; one a replay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from traces.capture.uvm_queue import only

CPU = 0
"""Index of the host among processors (uvm_tools.c)"""
PARTS = 32
"""Indices of one GPU: itself and its partitions (uvm_types.h, UVM_PARENT_ID_MAX_SUB_PROCESSORS)"""
ACCESS = {1: "read", 2: "write", 3: "atomic", 4: "prefetch"}
"""UvmEventMemoryAccessType"""
CAUSES = {
    0: "unknown", 1: "user", 2: "coherence", 3: "prefetch", 4: "eviction", 5: "access_counters",
}  # fmt: skip
"""UvmEventMigrationCause, by CUPTI's words"""
REMOTE = {
    0: "unknown", 1: "coherence", 2: "thrashing", 3: "policy", 4: "out_of_memory", 5: "eviction",
}  # fmt: skip
"""UvmEventMapRemoteCause"""
OPTIONAL = ("device", "thread", "batch", "client", "gpu_time_ns")
"""Columns of `traces.files.schema.FAULT_OPTIONAL` that such a trace has."""


def columns(entries: np.ndarray, origin_ns: int, process: int) -> list[dict[str, Any]]:
    """Columns for `FaultWriter.append`, a call a kind, of raw entries (uint8 [n, 72]). ``origin_ns``:
    CLOCK_MONOTONIC_RAW where times begin."""
    made = (
        _gpu_faults(entries, origin_ns), _migrations(entries, origin_ns),
        _replays(entries, origin_ns), _cpu_faults(entries, origin_ns),
        *_others(entries, origin_ns),
    )  # fmt: skip
    return [m | {"process": process} for m in made if len(m["time_ns"])]


def _time(values: np.ndarray, origin_ns: int) -> np.ndarray:
    return values.astype(np.int64) - origin_ns


def _device(index: np.ndarray) -> np.ndarray:
    return (index.astype(np.int32) - 1) // PARTS


def _words(codes: np.ndarray, words: dict[int, str]) -> pa.Array:
    distinct, index = np.unique(codes, return_inverse=True)
    texts = pa.array([words.get(c, f"code {c}") for c in distinct.tolist()], pa.string())
    return texts.take(pa.array(index.reshape(-1)))


def _gpu_faults(entries: np.ndarray, origin_ns: int) -> dict[str, Any]:
    f = only(entries, "gpu_fault")
    return {
        "time_ns": _time(f["time"], origin_ns), "kind": "gpu_fault", "address": f["address"],
        "count": 1, "access": _words(f["access"], ACCESS), "batch": f["batch"].astype(np.int64),
        "client": f["gpc"].astype(np.int32) << 16 | f["client"],
        "gpu_time_ns": f["time_gpu"].astype(np.int64), "device": _device(f["gpu"]),
    }  # fmt: skip


def _migrations(entries: np.ndarray, origin_ns: int) -> dict[str, Any]:
    m = only(entries, "migration")
    inward = m["dst"] != CPU
    copied = (m["end_gpu"] - m["begin_gpu"]).astype(np.int64)
    device = _device(np.where(inward, m["dst"], m["src"]))
    ways = pa.array(["migration_out", "migration_in"])
    return {
        "time_ns": _time(m["begin"], origin_ns),
        "kind": ways.take(pa.array(inward.astype(np.int8))), "address": m["address"],
        "bytes": m["bytes"].astype(np.int64),
        "duration_ns": pa.array(copied, mask=(m["begin_gpu"] == 0) | (copied < 0)),
        "cause": _words(m["cause"], CAUSES),
        "gpu_time_ns": pa.array(m["begin_gpu"].astype(np.int64), mask=m["begin_gpu"] == 0),
        "device": pa.array(device, mask=device < 0),
    }  # fmt: skip


def _replays(entries: np.ndarray, origin_ns: int) -> dict[str, Any]:
    r = only(entries, "replay")
    return {
        "time_ns": _time(r["time"], origin_ns), "kind": "replay",
        "batch": r["batch"].astype(np.int64), "gpu_time_ns": r["time_gpu"].astype(np.int64),
        "device": _device(r["gpu"]),
    }  # fmt: skip


def _cpu_faults(entries: np.ndarray, origin_ns: int) -> dict[str, Any]:
    c = only(entries, "cpu_fault")
    return {
        "time_ns": _time(c["time"], origin_ns), "kind": "cpu_fault", "address": c["address"],
        "access": _words(c["access"], ACCESS), "thread": c["thread"].astype(np.int32),
    }  # fmt: skip


def _others(entries: np.ndarray, origin_ns: int) -> list[dict[str, Any]]:
    t, h = only(entries, "thrashing"), only(entries, "throttling")
    r, e = only(entries, "remote_map"), only(entries, "eviction")
    return [
        {"time_ns": _time(t["time"], origin_ns), "kind": "thrashing", "address": t["address"],
         "bytes": t["bytes"].astype(np.int64)},
        {"time_ns": _time(h["time"], origin_ns), "kind": "throttling", "address": h["address"]},
        {"time_ns": _time(r["time"], origin_ns), "kind": "remote_map", "address": r["address"],
         "bytes": r["bytes"].astype(np.int64), "cause": _words(r["cause"], REMOTE)},
        {"time_ns": _time(e["time"], origin_ns), "kind": "eviction", "address": e["address"],
         "bytes": e["bytes"].astype(np.int64)},
    ]  # fmt: skip
