"""What the calibration does not need and the model is held against: the tree's threshold as seen,
thrashing hints, first touch against later ones, prefetches in, memory that CUDA did not allocate; raw
events.

    python experiments/paging_driver/details.py --out details.json --events events.npz
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from replay.calibrate.stats import repeat, row  # noqa: E402
from replay.paging.cuda import CudaPaging  # noqa: E402
from replay.paging.microbench import described, one  # noqa: E402
from replay.paging.touches import PAGE, PAGES, Touches, patterns  # noqa: E402
from replay.paging.tree_check import Blocks, Brought, serve  # noqa: E402
from traces.capture.residency import on_host  # noqa: E402

MIB = 1 << 20
BIGS = 32
"""64 KiB pages of a block."""


def single(page: int) -> Touches:
    return Touches("one", np.array([[page]], np.uint32))


def threshold(d: CudaPaging) -> dict[str, Any]:
    """One fault after the other in a block: which thresholds bring what the page table shows."""
    rng = np.random.default_rng(3)
    orders = {
        "ascending": np.arange(BIGS), "descending": np.arange(BIGS)[::-1],
        "every other": np.concatenate((np.arange(0, BIGS, 2), np.arange(1, BIGS, 2))),
        "shuffled 1": rng.permutation(BIGS), "shuffled 2": rng.permutation(BIGS),
        "shuffled 3": rng.permutation(BIGS),
    }  # fmt: skip
    found: dict[str, Any] = {}
    fits = set(range(1, 101))
    d.renew("huge")
    for i, (name, order) in enumerate(orders.items()):
        d.away()
        block, seen, touched = 3 + i, [], []
        for big in order.tolist():
            page = block * PAGES + 16 * big + int(rng.integers(16))
            if not on_host(d.ptr + page * PAGE, PAGE)[0]:
                continue  # the tree brought it
            d.again(single(page))
            touched.append(page % PAGES)
            there = ~on_host(d.ptr + block * PAGES * PAGE, PAGES * PAGE)
            seen.append(there)
        mine = set()
        for t in range(1, 101):
            blocks, out, same = Blocks(), Brought(), True
            for page, want in zip(touched, seen, strict=True):
                serve(blocks, 0, np.array([page]), t, out)
                got = np.unpackbits(blocks.of(0).view(np.uint8), bitorder="little").astype(bool)
                same = same and bool((got == want).all())
            if same:
                mine.add(t)
        fits &= mine
        found[name] = {
            "touched": touched, "resident": [int(s.sum()) for s in seen],
            "thresholds_that_fit": sorted(mine),
        }  # fmt: skip
    return {"orders": found, "thresholds_that_fit_all": sorted(fits)}


def thrashing(d: CudaPaging) -> dict[str, Any]:
    """CPU and GPU want one page in turns."""
    d.renew("huge")
    page, times = 5 * PAGES, []

    def work() -> float:
        for _ in range(60):
            begin = time.perf_counter_ns()
            d.write_on_cpu(page)
            middle = time.perf_counter_ns()
            d.again(single(page))
            times.append((middle - begin, time.perf_counter_ns() - middle))
        return 0.0

    _, seen = d.noted(work)
    return {
        "turns": len(times), "cpu_ns": [a for a, _ in times], "gpu_ns": [b for _, b in times],
        **described(seen),
    }  # fmt: skip


def first_touch(d: CudaPaging) -> list[dict[str, Any]]:
    """The same touches right after the arena was made, and later: frames, page tables and DMA
    mappings are made once."""
    made = []
    todo = {t.name: t for t in patterns(d.pages, d.sms)}
    for host in ("huge", "ordered", "scattered"):
        for name in ("stride of 64 KiB, wide", "stride of 4 KiB, wide"):
            arena = d.renew(host)
            first, seen = d.record(todo[name])
            later = [d.time(todo[name]) for _ in range(3)]
            made.append(
                {"host": host, "pattern": name, "first_recorded_ns": first, "later_ns": later,
                 "arena": arena, **described(seen)}
            )  # fmt: skip
    return made


def prefetched_in(d: CudaPaging) -> list[dict[str, Any]]:
    made = []
    for host in ("huge", "ordered", "scattered"):
        d.renew(host)
        for piece in (64 << 10, 2 * MIB, 16 * MIB):
            total = min(d.nbytes, 1024 * piece)
            taken = repeat(lambda p=piece, t=total: d.move_in(p, t), 5, 1.0)
            made.append({"host": host, "piece": piece, **row(taken, total)})
    return made


def sizes(d: CudaPaging) -> list[dict[str, Any]]:
    """Crowds on a block whose faulted pages leave the tree pieces of many sizes."""
    made = []
    rng = np.random.default_rng(9)
    for host in ("huge", "ordered"):
        d.renew(host)
        for n in (1, 3, 6, 12, 24, 48, 96, 192, 384):
            pages = np.sort(rng.choice(PAGES, n, replace=False)).astype(np.uint32) + 7 * PAGES
            t = Touches(f"{n} pages of a block at random", pages[:, None], about={"kind": "sizes"})
            made.append(one(d, t, host, 7))
    return made


def events(d: CudaPaging, path: Path) -> dict[str, Any]:
    """Raw events (uint8 [n, 72], see `traces.capture.uvm_queue`) of some patterns, for whoever wants to
    look closer."""
    kept: dict[str, np.ndarray] = {}
    names = []
    for host in ("huge", "ordered"):
        d.renew(host)
        for t in patterns(d.pages, d.sms):
            if t.name not in (
                "one page", "chain, one page a block", "crowd, 64 blocks",
                "stride of 64 KiB, wide", "one page in 16, at random, wide",
                "stride of 4 KiB, wide", "in order, narrow", "4 warps over all blocks",
            ):  # fmt: skip
                continue
            ns, seen = d.record(t)
            key = f"e{len(names)}"
            names.append(
                {
                    "key": key,
                    "host": host,
                    "pattern": t.name,
                    "ns": ns,
                    "base": seen.base,
                    "arrived": int(seen.arrived.sum()) if seen.arrived is not None else None,
                }
            )
            kept[key] = d.raw
            np.savez_compressed(path, **kept)
    return {"runs": names}


def unmanaged() -> dict[str, Any]:
    """Memory from mmap, plain and of a file, read by the GPU where the driver allows it (HMM)."""
    made: dict[str, Any] = {}
    d = CudaPaging(64 * MIB)
    made["about"] = d.about()
    if made["about"].get("pageable_memory_access") != 1:
        return made | {"why": "this driver does not page memory that CUDA did not allocate"}
    size = 64 * MIB
    with tempfile.NamedTemporaryFile(dir=os.environ.get("TMPDIR", "/tmp")) as file:
        file.write(b"\1" * size)
        file.flush()
        plain = mmap.mmap(-1, size)
        plain.write(b"\1" * size)
        mapped = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE)
        own = d.ptr
        for name, memory in (("anonymous", plain), ("file", mapped)):
            d.ptr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            t = Touches(
                "stride", (np.arange(0, size // PAGE, 16, dtype=np.uint32)).reshape(-1, 1),
                about={"kind": "wide"},
            )  # fmt: skip
            ns, seen = d.noted(lambda t=t: d.again(t))
            made[name] = {"ns": ns, **described(seen)}
        d.ptr = own
    return made


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--events", type=Path)
    p.add_argument("--unmanaged", action="store_true", help=argparse.SUPPRESS)
    given = p.parse_args()
    if given.unmanaged:
        print(json.dumps(unmanaged()))
        return
    found: dict[str, Any] = {}
    d = CudaPaging(256 * MIB)
    d.renew("huge")
    found["about"] = d.about()
    parts: dict[str, Callable[[], Any]] = {
        "threshold": lambda: threshold(d), "thrashing": lambda: thrashing(d),
        "first_touch": lambda: first_touch(d), "prefetched_in": lambda: prefetched_in(d),
        "sizes": lambda: sizes(d),
    }  # fmt: skip
    if given.events:
        parts["events"] = lambda: events(d, given.events)
    for name, part in parts.items():
        begin = time.monotonic()
        try:
            found[name] = part()
        except Exception as err:
            found[name] = {"failed": f"{type(err).__name__}: {err}"}
        print(name, f"{time.monotonic() - begin:.1f} s", str(found[name])[:200], flush=True)
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    d.close()
    words = [sys.executable, __file__, "--out", "-", "--unmanaged"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=40)
        found["unmanaged"] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found["unmanaged"] = {"failed": "took more than 40 s"}
    except (ValueError, IndexError):
        found["unmanaged"] = {"failed": done.stderr[-500:]}
    print("unmanaged", str(found["unmanaged"])[:300])
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
