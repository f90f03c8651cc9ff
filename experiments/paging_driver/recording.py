"""Is a recording whole? Known pages moved to and fro under every tracer and setting.

    python experiments/paging_driver/recording.py --out recording.json

A managed allocation is written by the CPU and sent to the host; a kernel then reads every page in a
scattered order, or one in 16, and all is sent to the host again in pieces of 2 MiB; three times. What
moved is asked of the page table after each (`traces.capture.looks`) and held against the records. Every
cell is a process of its own: CUPTI wants to be there before CUDA is.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

MIB, PAGE = 1 << 20, 4096
SIZE, ROUNDS = 512 * MIB, 3
CELLS = [
    {"tracer": "none"},
    {"tracer": "driver"},
    {"tracer": "cupti", "delivery_ms": 1000, "buffer_mib": 8},
    {"tracer": "cupti", "delivery_ms": 50, "buffer_mib": 8},
    {"tracer": "cupti", "delivery_ms": 5, "buffer_mib": 8},
    {"tracer": "cupti", "delivery_ms": 1000, "buffer_mib": 128},
    {"tracer": "cupti", "delivery_ms": 50, "buffer_mib": 128},
    {"tracer": "cupti", "delivery_ms": 1000, "buffer_mib": 8, "flush_ms": 5},
]
"""Tracers and settings; ``flush_ms``: a thread of ours asks CUPTI for its records that often."""
WAYS = ("scattered", "one in 16")


def run(cell: dict[str, Any], way: str) -> dict[str, Any]:
    """One recording: what moved, what was recorded, and what it cost."""
    from traces.capture.cupti import FaultRecording
    from traces.capture.driver_recording import DriverRecording

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faults.arrow"
        if cell["tracer"] == "none":
            return {"kernel_ns": work(way, None)}
        if cell["tracer"] == "driver":
            recording: Any = DriverRecording(path)
        else:
            size = cell["buffer_mib"] * MIB
            recording = FaultRecording(path, delivery_ms=cell["delivery_ms"], buffer_bytes=size)
        stop = threading.Event()
        with recording:
            if cell.get("flush_ms"):
                every = cell["flush_ms"] / 1000

                def ask() -> None:
                    while not stop.wait(every):
                        recording._cupti.activity_flush_all(0)

                threading.Thread(target=ask, daemon=True).start()
            taken = work(way, recording)
            stop.set()
        looks = recording.looks.compared()
        return {
            "kernel_ns": taken, "looks": looks, "rows": recording.rows,
            "dropped": recording.dropped, "lost": getattr(recording, "lost", None),
            "delivered": recording.delivered, "buffers": recording.buffers,
            "handover_ns": recording.busy_ns, "notes": recording.notes,
            "missing_in": sum(x["came_unrecorded"] for x in looks),
            "missing_out": sum(x["went_unrecorded"] for x in looks),
            "came": sum(x["came"] for x in looks), "went": sum(x["went"] for x in looks),
            "recorded_in": sum(x["recorded_in"] for x in looks),
            "recorded_out": sum(x["recorded_out"] for x in looks),
        }  # fmt: skip


def work(way: str, recording: Any) -> list[float]:
    """The movements; ns of each kernel."""
    import cupy

    from traces.capture.residency import HOST, map_on_host, prefetch

    pages = SIZE // PAGE
    source = (ROOT / "replay" / "paging" / "walk.cu").read_text()
    walk = cupy.RawModule(code=source).get_function("walk")
    out = cupy.zeros(4, cupy.uint32)
    step = 1 if way == "scattered" else 16
    order = np.random.default_rng(0).permutation(pages // step).astype(np.uint32) * step
    warps = 2048
    table = np.full(warps * -(-len(order) // warps), 0xFFFFFFFF, np.uint32)
    table[: len(order)] = order
    turns = len(table) // warps
    listed = cupy.asarray(table)
    plain = cupy.zeros(PAGE, cupy.uint8)
    one = cupy.zeros(1, cupy.uint32)
    walk((1,), (32,), (plain, one, np.int32(1), np.int32(1), np.int32(1), out))
    address = int(cupy.cuda.runtime.mallocManaged(SIZE))
    ctypes.memset(address, 1, SIZE)

    def away() -> None:
        for at in range(0, SIZE, 2 * MIB):
            prefetch(address + at, 2 * MIB, HOST)
        cupy.cuda.runtime.deviceSynchronize()
        map_on_host(address, SIZE)
        if recording is not None:
            recording.look()

    taken = []
    away()
    for _ in range(ROUNDS):
        first, last = cupy.cuda.Event(), cupy.cuda.Event()
        first.record()
        args = (np.uint64(address), listed, np.int32(turns), np.int32(warps), np.int32(0), out)
        walk((warps // 16,), (512,), args)
        last.record()
        last.synchronize()
        taken.append(float(cupy.cuda.get_elapsed_time(first, last)) * 1e6)
        if recording is not None:
            recording.look()
        away()
    cupy.cuda.runtime.free(address)
    return taken


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--seconds", type=float, default=100.0, help="begin no cell after these")
    p.add_argument("--tracer", help="these cells alone")
    p.add_argument("--cell", help=argparse.SUPPRESS)
    given = p.parse_args()
    if given.cell:
        cell, way = json.loads(given.cell)
        print(json.dumps(run(cell, way)))
        return
    made: list[dict[str, Any]] = []
    begin = time.monotonic()
    for way in WAYS:
        for cell in (c for c in CELLS if given.tracer in (None, c["tracer"])):
            if time.monotonic() - begin > given.seconds:
                break
            words = [sys.executable, __file__, "--out", "-", "--cell", json.dumps([cell, way])]
            row: dict[str, Any] = {**cell, "way": way}
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=45)
                row |= json.loads(done.stdout.splitlines()[-1])
            except subprocess.TimeoutExpired:
                row["failed"] = "took more than 45 s"
            except (ValueError, IndexError):
                row["failed"] = done.stderr[-800:]
            made.append(row)
            given.out.write_text(json.dumps(made, indent=1) + "\n")
            keys = ("tracer", "delivery_ms", "buffer_mib", "flush_ms", "way", "came", "missing_in",
                    "missing_out", "dropped", "failed", "kernel_ns")  # fmt: skip
            print({k: row[k] for k in keys if row.get(k) is not None}, flush=True)


if __name__ == "__main__":
    main()
