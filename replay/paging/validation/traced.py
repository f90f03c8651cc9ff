"""A fault trace that the driver's events made, as what a run of known touches leaves (`Seen`)."""

from __future__ import annotations

import numpy as np

from replay.paging.device import Seen
from replay.paging.touches import BLOCK, PAGE
from traces.capture.uvm_queue import GPU_FAULT, KINDS, MIGRATION, REPLAY
from traces.faults import FaultTrace

CAUSE = {"user": 1, "coherence": 2, "prefetch": 3, "eviction": 4, "access_counters": 5}


def seen_of(t: FaultTrace, from_ns: int = 0) -> Seen:
    """The events from a time on. Times are those of the trace."""
    time = t.numbers("time_ns")
    late = time >= from_ns
    f, m, r = (t.where(k) & late for k in ("gpu_fault", "migration_in", "replay"))
    out = t.where("migration_out") & late
    moved = m | out
    faults = np.zeros(int(f.sum()), GPU_FAULT)
    faults["type"] = KINDS["gpu_fault"]
    client = t.numbers("client")[f]
    for name, values in (
        ("address", t.numbers("address")[f]), ("time", time[f]), ("batch", t.numbers("batch")[f]),
        ("time_gpu", t.numbers("gpu_time_ns")[f]), ("gpc", client >> 16),
        ("client", client & 0xFFFF),
    ):  # fmt: skip
        faults[name] = values
    moves = np.zeros(int(moved.sum()), MIGRATION)
    moves["type"] = KINDS["migration"]
    begin = t.numbers("gpu_time_ns")[moved]
    codes, words = t.words("cause")
    number = np.array([CAUSE.get(w, 0) for w in words] + [0], np.uint8)
    for name, values in (
        ("address", t.numbers("address")[moved]), ("bytes", t.numbers("bytes")[moved]),
        ("begin", time[moved]), ("end", time[moved]), ("begin_gpu", begin),
        ("end_gpu", begin + t.numbers("duration_ns")[moved]), ("cause", number[codes[moved]]),
        ("dst", m[moved].astype(np.uint16)), ("src", out[moved].astype(np.uint16)),
    ):  # fmt: skip
        moves[name] = values
    replays = np.zeros(int(r.sum()), REPLAY)
    replays["type"] = KINDS["replay"]
    for name, values in (
        ("batch", t.numbers("batch")[r]), ("time", time[r]),
        ("time_gpu", t.numbers("gpu_time_ns")[r]),
    ):  # fmt: skip
        replays[name] = values
    lost = (t.meta.get("recording") or {}).get("lost") or {}
    others = {k: int((t.where(k) & late).sum()) for k in ("cpu_fault", "thrashing", "throttling")}
    return Seen(faults, moves, replays, 0, lost, None, {k: n for k, n in others.items() if n})


def partial_blocks(t: FaultTrace) -> dict[int, int]:
    """Pages of the last block of each managed allocation that the recording knows, by the block's
    number, where that is no whole block."""
    made: dict[int, int] = {}
    for address, nbytes in (t.meta.get("recording") or {}).get("managed") or ():
        end = address + nbytes
        if end % BLOCK:
            made[end // BLOCK] = -(-(end % BLOCK) // PAGE)
    return made
