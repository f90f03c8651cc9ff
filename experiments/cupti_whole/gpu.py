"""Is a CUPTI recording whole? Known movements of managed memory against recorded bytes.

An allocation goes to the GPU and back in rounds: the CPU writes all of it, then the GPU touches every
page (or it is prefetched). It is far smaller than the GPU's memory, so nothing is evicted, and in
every round each byte moves once each way: what should be in the record is known to the byte.

Varied: how the GPU touches it (in order, one access per 4 KiB page in a scattered order, many small
kernels as an engine launches them, prefetch), the allocation's size, how often CUPTI delivers, and
whether Python is busy meanwhile (its lock delays the callback).

    PYTHONPATH=. python3 experiments/cupti_whole/gpu.py --out DIR

Needs CuPy and cupti-python. Every cell is a process of its own, since CUPTI wants to be there before
the CUDA context is. Prints one JSON object; ``DIR`` keeps the traces with ``--keep``.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from traces.capture import cuda_driver, provenance  # noqa: E402
from traces.capture.cupti import FaultRecording  # noqa: E402
from traces.errors import InputError  # noqa: E402
from traces.faults import PAGE, open_faults  # noqa: E402
from traces.faults.whole import missing  # noqa: E402

SOURCE = r"""
extern "C" __global__ void in_order(const int4* p, long n, int* out) {
    int s = 0;
    long at = blockIdx.x * (long) blockDim.x + threadIdx.x;
    for (long i = at; i < n; i += gridDim.x * (long) blockDim.x)
        s += p[i].x;
    if (s == 12345) *out = s;
}
extern "C" __global__ void by_page(const char* p, long first, long n, long step, long pages, int* out) {
    int s = 0;
    long at = blockIdx.x * (long) blockDim.x + threadIdx.x;
    for (long i = at; i < n; i += gridDim.x * (long) blockDim.x)
        s += p[(((first + i) * step) % pages) * 4096];
    if (s == 12345) *out = s;
}
"""
WAYS = ("in_order", "scattered", "small_kernels", "prefetch")
MIB = 1 << 20


class Location(ctypes.Structure):
    """`CUmemLocation`"""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


DEVICE, HOST = Location(1, 0), Location(2, 0)


class Memory:
    """A managed allocation and the ways to move it."""

    def __init__(self, n_bytes: int) -> None:
        import cupy

        self.cupy, self.n = cupy, n_bytes
        self.memory = cupy.cuda.malloc_managed(n_bytes)
        self.out = cupy.zeros(1, cupy.int32)
        module = cupy.RawModule(code=SOURCE)
        self.in_order, self.by_page = (module.get_function(f) for f in ("in_order", "by_page"))
        self.driver = ctypes.CDLL("libcuda.so.1")

    def wait(self) -> None:
        self.cupy.cuda.runtime.deviceSynchronize()

    def write_on_cpu(self, value: int) -> None:
        """Every page comes back to the host, by CPU faults."""
        ctypes.memset(self.memory.ptr, value, self.n)

    def prefetch(self, where: Location) -> None:
        code = self.driver.cuMemPrefetchAsync_v2(
            ctypes.c_uint64(self.memory.ptr), ctypes.c_size_t(self.n), where, 0, None
        )
        if code:
            raise InputError(f"cuMemPrefetchAsync fails with error {code}")
        self.wait()

    def touch(self, way: str) -> None:
        """The GPU reads every page."""
        pages = self.n // PAGE
        if way == "prefetch":
            self.prefetch(DEVICE)
        elif way == "in_order":
            self.in_order((1024,), (256,), (self.memory.ptr, self.n // 16, self.out))
        elif way == "scattered":  # a step without common divisor visits every page once
            self.by_page((1024,), (256,), (self.memory.ptr, 0, pages, 40507, pages, self.out))
        else:  # an expert's worth at a time
            some = 1152
            for first in range(0, pages, some):
                n = min(some, pages - first)
                self.by_page((32,), (128,), (self.memory.ptr, first, n, 1, pages, self.out))
        self.wait()


def busy(until: threading.Event) -> None:
    """Hold Python's lock as much as one thread can."""
    while not until.is_set():
        sum(i * i for i in range(1000))


def run(
    out: Path, mib: int, way: str, rounds: int, delivery_ms: int, python_busy: bool, keep: bool
) -> dict[str, Any]:
    """One recording: what should be there and what is."""
    path = out / f"{way}-{mib}-{delivery_ms}{'-busy' if python_busy else ''}.arrow"
    stop = threading.Event()
    if python_busy:
        threading.Thread(target=busy, args=(stop,), daemon=True).start()
    try:
        with FaultRecording(path, delivery_ms=delivery_ms) as recording:
            m = Memory(mib * MIB)
            m.write_on_cpu(1)
            start = time.perf_counter()
            for i in range(rounds):
                m.touch(way)
                m.prefetch(HOST) if way == "prefetch" else m.write_on_cpu(i)
            took = time.perf_counter() - start
    finally:
        stop.set()
    moved = mib * MIB * rounds
    t = open_faults(path)
    size = t.numbers("bytes")
    recorded = {w: int(size[t.where(f"migration_{w}")].sum()) for w in ("in", "out")}
    found = {
        "mib": mib,
        "way": way,
        "rounds": rounds,
        "delivery_ms": delivery_ms,
        "python_busy": python_busy,
        "seconds": took,
        "moved_each_way": moved,
        "recorded": recorded,
        "recorded_share": {w: n / moved for w, n in recorded.items()},
        "records": recording.delivered,
        "dropped": recording.dropped,
        "ignored": recording.ignored,
        "buffers": recording.buffers,
        "handover_s": recording.busy_ns / 1e9,
        "gpu_faults": int(t.where("gpu_fault").sum()),
        "missing": missing(t).to_json(),
        "clock": {"drift_ns": recording.clock.drift_ns, "error_ns": recording.clock.error_ns},
        "notes": recording.notes,
    }
    if not keep:
        path.unlink()
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", required=True, help="folder for traces")
    p.add_argument("--mib", default="64,1024")
    p.add_argument("--rounds", type=int, default=4)
    p.add_argument("--ways", default=",".join(WAYS))
    p.add_argument("--delivery-ms", default="1000,50")
    p.add_argument("--keep", action="store_true", help="keep the traces")
    p.add_argument("--cell", help=argparse.SUPPRESS)
    a = p.parse_args()
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    if a.cell:
        mib, way, delivery, python_busy = json.loads(a.cell)
        print(json.dumps(run(out, mib, way, a.rounds, delivery, python_busy, a.keep)))
        return
    cells = []
    for mib, way, delivery, python_busy in itertools.product(
        map(int, a.mib.split(",")),
        a.ways.split(","),
        map(int, a.delivery_ms.split(",")),
        (False, True),
    ):
        what = json.dumps([mib, way, delivery, python_busy])
        done = subprocess.run(
            [sys.executable, *sys.argv, "--cell", what], capture_output=True, text=True, check=False
        )
        try:
            cell = json.loads(done.stdout)
        except ValueError:
            cell = {"cell": what, "failed": done.returncode, "said": done.stderr[-1000:]}
        cells.append(cell)
        share = cell.get("recorded_share", cell.get("said"))
        print(f"{what} (MiB, way, delivery ms, busy): {share}", file=sys.stderr)
    cuda_driver.start()
    machine = provenance.machine(gpu=", ".join(cuda_driver.names()))
    print(json.dumps({"machine": machine, "cells": cells}, indent=2))


if __name__ == "__main__":
    main()
