"""Misses shared with the CPU on a GPU machine, from pinned and from pageable host memory, and a search
that proves what it found: calibrated, predicted, then measured, in under eight minutes.

    python experiments/policy_lead/hybrid_gpu.py TRACE --out DIR

TRACE: routing of gpt-oss-20b (24 layers x 32 experts, top-4), some hundred decode tokens. All cells are
predicted from the calibration before the first is measured. DIR gets calibration.toml and hybrid.json,
which is written whole after every step. ``--threads N`` gives the CPU's experts N threads, in the
calibration and in the replay; ``--no-search`` leaves the search out. ``--backend host --quick`` runs
the same path without a GPU on tiny experts, to see that it works: its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from gpu import PROFILE, SIZES, Cell, calibrate, compared, line, measure, predict, say

from replay.records import write_json

NAME = "hybrid.json"
POLICIES = ("lru", "learned")
SEARCH = [
    sys.executable,
    "-c",
    "from uvmsim.cli import main; main()",
    "search",
    "--prove",
    "--json",
]


def cells() -> list[Cell]:
    """Pinned, then pageable: the bank is filled twice. What is compared lies side by side; 25 % comes
    first."""
    return [
        Cell(mode, policy, size, behind=mode == "hybrid", pageable=pageable)
        for pageable in (False, True)
        for size in SIZES
        for policy in POLICIES
        for mode in ("expert-cache", "hybrid")
    ]


def cell_of(cell: Cell, predicted: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """A cell's part of the result: the row of `gpu.compared`, and what the CPU did."""
    row = compared(predicted, measured)
    cpu_s = measured.get("cpu_s")
    if cell.mode == "hybrid" and cpu_s:
        behind = row["misses_by"]["cpu-behind"]
        experts = row["misses_by"]["cpu"] + behind
        row["cpu"] = {
            "experts": experts, "copied_behind": behind,
            "of_misses": experts / max(measured["misses"], 1), "seconds": cpu_s,
            "predicted_wait_s": predicted["time_split_s"].get("cpu"),
        }  # fmt: skip
    return row


def speedups(rows: dict[str, Any]) -> dict[str, Any]:
    """Decode tokens/s over those of LRU without the CPU, by link and size: predicted and measured."""
    made: dict[str, Any] = {}
    for cell in cells():
        base = rows.get(Cell("expert-cache", "lru", cell.size, pageable=cell.pageable).key, {})
        row = rows.get(cell.key, {})
        of = made.setdefault("pageable" if cell.pageable else "pinned", {}).setdefault(
            cell.size, {}
        )
        for k in ("predicted", "measured"):
            a, b = row.get(f"{k}_tokens_per_s"), base.get(f"{k}_tokens_per_s")
            if a and b:
                of.setdefault(f"{cell.mode}, {cell.policy}", {})[k] = a / b
    return made


def measured_all(
    wanted: list[Cell], predicted: dict[str, Any], args: argparse.Namespace, end: float, told: Any
) -> None:
    """Measure cell by cell until there is no time; ``told`` gets every row."""
    from replay.backend import backend
    from replay.session import Session

    longest, bank = 0.0, None
    with Session(backend(args.backend)) as session:
        for cell in wanted:
            if time.monotonic() + longest > end:
                say("no time for the others")
                return
            try:
                found = measure(session, cell, args)
                row = cell_of(cell, predicted[cell.key], found)
                # The first of a bank fills it.
                longest = max(longest, found["seconds"]) if bank == cell.pageable else longest
                bank = cell.pageable
            except Exception as err:  # one cell that fails leaves the others
                traceback.print_exc()
                row = {"status": "error", "what": f"{type(err).__name__}: {err}"}
            told(cell.key, row)
            say(f"{cell.key}: {line(row)}")


def search(args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """`uvmsim search --prove` on the bundled trace, on the machine as calibrated; what it says."""
    command = [*SEARCH, "--hardware", str(args.out / PROFILE), "--slots", "25%"]
    command += ["--out", str(args.out / "bundled.search"), "--minutes", f"{args.search_minutes}"]
    if args.quick:
        command += ["--expert-size", "64KiB", "--trials", "3", "--policy", "lru,lfu", "--jobs", "1"]
    begun = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        return {"status": "no time", "seconds": round(seconds, 1)}
    took = round(time.monotonic() - begun, 1)
    if done.returncode:
        return {"status": "error", "what": done.stderr.strip()[-2000:], "seconds": took}
    found = json.loads(done.stdout)
    return {"status": found["proof"]["status"], "seconds": took, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--tokens", type=int, default=300, help="tokens a cell is run for")
    parser.add_argument("--minutes", type=float, default=7.6, help="for everything together")
    parser.add_argument("--search-minutes", type=float, default=0.7, help="of them for the search")
    parser.add_argument("--threads", type=int, help="threads of the CPU's experts; all")
    parser.add_argument("--no-search", action="store_true", help="leave the search out")
    parser.add_argument("--backend", choices=("cuda", "host"), default="cuda")
    parser.add_argument("--dtype", default="mxfp4", help="type of the weights")
    parser.add_argument("--quick", action="store_true", help="tiny experts, to see that it works")
    args = parser.parse_args()
    from numba import get_num_threads, set_num_threads

    if args.threads is not None:
        set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    end = began + 60 * args.minutes
    calibrate(args)
    say(f"calibrated after {time.monotonic() - began:.0f} s")
    wanted = cells()
    # Kernels are compiled here for the measurements and for the search too.
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1), get_context("spawn")) as pool:
        asked = {c.key: pool.submit(predict, c, args) for c in wanted}
        predicted = {key: future.result() for key, future in asked.items()}
    say(f"{len(predicted)} cells predicted after {time.monotonic() - began:.0f} s")
    profile = tomllib.loads((args.out / PROFILE).read_text())
    made: dict[str, Any] = {
        "trace": args.trace.name, "tokens": args.tokens, "backend": args.backend,
        "dtype": args.dtype, "threads": get_num_threads(),
        "cpu_experts": profile["engine"].get("cpu_experts"), "predicted": predicted,
        "cells": {}, "search": None,
    }  # fmt: skip

    def told(key: str, row: dict[str, Any]) -> None:
        made["cells"][key] = row
        made["over_lru"] = speedups(made["cells"])
        made["not_measured"] = [k for k in predicted if k not in made["cells"]]
        made["seconds"] = round(time.monotonic() - began, 1)
        write_json(args.out / NAME, made)

    write_json(args.out / NAME, made)
    # Twice what the search is given, for policies that are compiled first, and for its proof.
    kept = 0.0 if args.no_search else 120 * args.search_minutes
    measured_all(wanted, predicted, args, end - kept, told)
    if not args.no_search:
        made["search"] = search(args, end - time.monotonic())
        say(f"search: {made['search']['status']}")
    made["seconds"] = round(time.monotonic() - began, 1)
    write_json(args.out / NAME, made)
    say(f"finished in {made['seconds']:.0f} s")
    rows = made["cells"]
    bad = [k for k, r in rows.items() if not (r.get("verified") and r.get("counters_equal"))]
    if bad:
        sys.exit(f"error: wrong or void: {', '.join(bad)}")


if __name__ == "__main__":
    main()
