"""The ``[uvm]`` table of a hardware profile from what was measured: what each key is the cost of.

The one place that knows the keys of the page model (`uvmsim.machine.hardware_spec.UvmSpec`); a key that
the model does not have is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from replay.calibrate.stats import Row
from replay.paging.fit import Constants, fit
from uvmsim.machine.hardware_spec import UvmSpec

SHARED = {"batch_ns": "batches", "entry_ns": "entries", "service_ns": "services"}
"""Costs of the handler, whatever host memory is like."""
WAKE = "runs"
"""Once a kernel, beside all counts: the first fault finds an idle driver. Fitted, so that nothing else
has to explain it; the page model has no such key."""
OWN = {"push_ns": "moved"}
"""Costs of pages that come in: the handler pushes their copies page by page and maps them. Copies run
meanwhile, at the link's own speed."""
CROWD = 4
"""Warps an SM, from which more of them wait than the handler finds entries of."""
CROWDED = ("one block", "16 pages of a block")
"""Turns (`replay.paging.touches`) whose batches tell how many entries are there when it looks."""
HOST = "huge"
"""The host memory that the table is of: what went through the GPU first and was sent out, as weights
are that a program copied into managed memory."""
PAGE = 4096
DECODE_THREADS = 128
"""Threads of a block of llama.cpp's matrix-vector kernel."""
Found = dict[str, tuple[Any, str]]
"""By key: value, and how it was found."""


def table(
    rows: Sequence[Row], out_rows: Sequence[Row], device: dict[str, Any], d2h: float,
    h2d: float | None = None,
) -> Found:  # fmt: skip
    """``rows`` of `replay.paging.microbench.measure`, ``out_rows`` of `replay.paging.stage.out_rows`,
    ``device`` what it says about itself, ``d2h`` and ``h2d`` bytes a second of plain copies: pages that
    move in take at least that long. Raises `ValueError` where the rows do not do."""
    known = set(UvmSpec.model_fields)
    shared = {k: c for k, c in SHARED.items() if k in known}
    floor = {"moved": PAGE / h2d * 1e9} if h2d else {}
    constants = fit(rows, (*shared.values(), WAKE), tuple(OWN.values()), floor=floor)
    host = HOST if HOST in constants.own else sorted(constants.own)[0]
    error = constants.error
    how = (
        f"fitted to {error['rows']:.0f} runs of known touches of managed memory (mean error "
        f"{error['mean']:.1%}, worst {error['worst']:.1%}; {constants.shared[WAKE] / 1e3:.0f} us a "
        "kernel beside)"
    )
    made: Found = {
        k: (round(constants.shared[c]), _spread(how, constants, c)) for k, c in shared.items()
    }
    own = constants.own[host]
    made["push_ns"] = (round(own["moved"]), _spread(how, constants, f"moved, {host}"))
    made["copy_ns"] = (0, "not told apart from push_ns")
    made["h2d_bytes_per_s"] = (
        round(h2d) if h2d else round(PAGE / max(own["moved"], 1e-3) * 1e9),
        "large copies, as the machine's own h2d_bytes_per_s" if h2d else how,
    )  # fmt: skip
    made |= _look(rows, int(device["sms"]))
    made |= _first_touch(rows) | _way_out(out_rows, d2h) | _kernel_keys(rows, device)
    return {k: v for k, v in made.items() if k in known}


def _look(rows: Sequence[Row], sms: int) -> Found:
    """Entries a batch while many more warps wait."""
    crowds = [r for r in rows if r.get("turn") in CROWDED and r["warps"] >= CROWD * sms]
    found = [
        r["counts"]["entries"] / r["counts"]["batches"] for r in crowds if r["counts"]["batches"]
    ]
    if not found:
        return {}
    how = f"entries a batch, mean of {len(found)} crowds of {CROWD} warps an SM and more"
    return {"look_entries": (max(round(float(np.mean(found))), 1), how)}


def _spread(how: str, constants: Constants, name: str) -> str:
    low, high = constants.spread[name]
    return f"{how}; p10 to p90 {low:,.0f} to {high:,.0f} ns over fits to runs drawn anew"


def _first_touch(rows: Sequence[Row]) -> Found:
    """From all blocks of an arena that the CPU had touched: the first time over later ones."""
    arenas = [r.get("arena") or {} for r in rows if r["host"] == "ordered"]
    arena = next((a for a in arenas if "first_ns" in a), None)
    if arena is None:
        return {"first_touch_ns": (0, "not told apart: blocks were touched before they were timed")}
    over = max(arena["first_ns"] - arena["again_ns"], 0.0) / arena["first_blocks"]
    how = f"{arena['first_blocks']} blocks that the CPU had touched, the first time over later ones"
    return {"first_touch_ns": (round(over), how)}


def _way_out(rows: Sequence[Row], d2h: float) -> Found:
    """From prefetches to the host: a block's own cost beside its bytes at the link's speed."""
    blocks = [r for r in rows if r["piece"] == 2 << 20]
    if not blocks:
        raise ValueError("no prefetches to the host were timed")
    r = min(blocks, key=lambda r: r["median_ns"] / r["bytes"])
    each = r["median_ns"] * r["piece"] / r["bytes"]
    own = max(each - r["piece"] / d2h * 1e9, 0.0)
    how = f"prefetches to the host, {r['piece'] >> 20} MiB each, median of {r['n']}"
    return {
        "evict_ns": (round(own), f"{how}: what is over the bytes at {d2h / 1e9:.1f} GB/s"),
        "d2h_bytes_per_s": (round(d2h), "pinned copies, as the machine's own d2h_bytes_per_s"),
        "duplex": (True, "an engine of its own each way; not measured while the driver evicts"),
    }


def _kernel_keys(rows: Sequence[Row], device: dict[str, Any]) -> Found:
    """What is of the card and of how its SMs fault."""
    ctas = int(device.get("threads_per_sm", 2048)) // DECODE_THREADS
    return {
        "sm_count": (int(device["sms"]), "as the driver reports it"),
        "ctas_per_sm": (ctas, f"threads an SM holds, in blocks of {DECODE_THREADS}"),
    }  # fmt: skip
