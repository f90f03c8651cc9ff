"""Two GPUs: calibrated, predicted, then measured, in under six minutes.

    python experiments/two_gpus/gpu.py TRACE OUT

TRACE: routing of gpt-oss-20b (24 layers x 32 experts, top-4), a few hundred decode tokens. Every cell
is predicted from the calibration before the first is measured; every output is compared with the
all-resident run, every counter with the simulator's. OUT gets calibration.toml with its tables, and
two_gpus.json, whole after each cell. ``--backend host --quick`` runs the same path without a GPU on
tiny experts, to see that it works: its times mean nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PROFILE = "calibration.toml"
RESULT = "two_gpus.json"
LEFT_OUT = (
    "faults", "migrations", "uvm_mode", "fault_groups", "paging", "cpu", "cpu_experts", "policies",
)  # fmt: skip
"""Stages of the calibration that have no bearing on copies, kernels or the way between cards."""
WANTED = 0.08
"""What a predicted speed may be off."""
HALF = 0.6
"""Where a card keeps less of its link while the other copies too, both share one."""


@dataclass(frozen=True)
class Cell:
    """One thing to predict and to run."""

    split: str | None
    """None: one card."""
    policy: str
    size: str

    @property
    def key(self) -> str:
        return f"{self.split or 'one'}/{self.size}/{self.policy}"


def cells() -> list[Cell]:
    """The most wanted first: time may run out."""
    made = [
        Cell(split, policy, size)
        for size in ("25%", "12.5%")
        for policy in ("lru", "learned")
        for split in ("layers", "experts", None)
    ]
    made += [Cell("pool", policy, "25%") for policy in ("lru", "learned")]
    return [
        *made,
        Cell("experts:popularity", "lru", "25%"),
        Cell("layers", "lru+next-layer", "25%"),
    ]


def job_of(cell: Cell, args: argparse.Namespace, shared: bool) -> Any:
    """The cell as the engine runs it: gpt-oss-20b's sizes, the arithmetic of the engine's kernels."""
    from replay.validate.grid import as_replayed
    from uvmsim.machine.hardware import Hardware
    from uvmsim.policies.registry import parse
    from uvmsim.studies.resolve import base_job, load_trace, resolve_model, slots_of
    from uvmsim.studies.scenario import Scenario
    from uvmsim.workload import build_workload

    two: dict[str, Any] = (
        {"gpus": 2, "split": cell.split, "shared_link": shared} if cell.split else {}
    )
    scenario = Scenario(
        str(args.trace), model=None if args.quick else "gpt-oss-20b",
        expert_size="64KiB" if args.quick else None, limit=args.tokens, **two,
    )  # fmt: skip
    trace = load_trace(scenario.trace, scenario.limit)
    model = as_replayed(resolve_model(scenario, trace, []), args.dtype)
    workload = build_workload(trace)
    job = base_job(scenario, workload, model, Hardware.load(str(args.out / PROFILE)), None)
    total = workload.n_layers * workload.n_experts
    return replace(job, policy=parse(cell.policy), slots=slots_of(cell.size, total))


COUNTED = ("slots", "accesses", "hits", "misses", "evictions", "bytes_h2d", "hit_rate_by_layer")


def told(run: Any) -> dict[str, Any]:
    """What is kept of a run, predicted or measured."""
    if run.does_not_fit is not None:
        return {"status": run.status, "what": str(run.does_not_fit)}
    d = run.to_json()
    keys = (*COUNTED, "hit_rate", "decode_tokens_per_s", "prefill_tokens_per_s", "time_split_s",
            "token_latency_ms", "status", "notes")  # fmt: skip
    prefetch = {k: d["prefetch"][k] for k in ("issued", "wasted")}
    return {k: d.get(k) for k in keys} | {"prefetch": prefetch}


def predict(cell: Cell, args: argparse.Namespace, shared: bool) -> dict[str, Any]:
    """In a process of its own: kernels are compiled side by side, and found again later."""
    from uvmsim.studies.simulate import simulate

    try:
        run = simulate(job_of(cell, args, shared))
        hop = run.to_json().get("bytes_peer")
        return told(run) | {"hop_bytes": hop, "gpus": run.to_json().get("gpus")}
    except Exception as err:
        return {"status": "error", "what": f"{type(err).__name__}: {err}"}


def measure(session: Any, cell: Cell, args: argparse.Namespace, shared: bool) -> dict[str, Any]:
    from replay.session import How

    begun = time.monotonic()
    run = session.run(job_of(cell, args, shared), "expert-cache", How(dtype=args.dtype))
    made = told(run) | {"problems": run.problems, "step_ns": run.step_ns.tolist()}
    if run.trail is not None:
        d = run.to_json()
        made |= {k: d.get(k) for k in ("verified", "options", "host_issue_s", "copy_busy_s")}
        made["hop_bytes"] = d["options"].get("hop_bytes")
    return made | {"seconds": round(time.monotonic() - begun, 2)}


def compared(predicted: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """A cell's row of the report."""
    row: dict[str, Any] = {"status": measured.get("status"), "verified": measured.get("verified")}
    if "hits" not in measured or "hits" not in predicted:
        return row | {"what": measured.get("what") or predicted.get("what")}
    equal = [k for k in (*COUNTED, "prefetch", "hop_bytes") if predicted[k] == measured[k]]
    want, got = predicted["decode_tokens_per_s"], measured["decode_tokens_per_s"]
    return row | {
        "counters_equal": len(equal) == len(COUNTED) + 2,
        "hit_rate": measured["hit_rate"], "predicted_tokens_per_s": want,
        "measured_tokens_per_s": got, "error": want / got - 1 if want and got else None,
    }  # fmt: skip


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


def link_kept(tables: dict[str, Any]) -> float | None:
    """What a card keeps of its link to the host while the other copies too."""
    from replay.calibrate.probe import TOGETHER

    found = {r["direction"]: r for r in tables.get("peers", []) if r["what"] == TOGETHER}
    if len(found) < 2:
        return None
    return float(found["both"]["bytes_per_s"] / found["one"]["bytes_per_s"])


def machine_record() -> dict[str, Any]:
    """What ran: cards and how they are connected, driver, processor; what cannot be asked is left
    out."""
    made: dict[str, Any] = {
        "platform": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version(),
    }  # fmt: skip
    asked = {
        "cards": ["nvidia-smi", "--query-gpu=index,name,pci.bus_id,driver_version,memory.total,"
                  "pcie.link.gen.max,pcie.link.width.max", "--format=csv"],
        "topology": ["nvidia-smi", "topo", "-m"],
        "nvlink": ["nvidia-smi", "nvlink", "--status", "-i", "0"],
    }  # fmt: skip
    for name, command in asked.items():
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            made[name] = found.stdout.splitlines()
        except (OSError, subprocess.SubprocessError):
            continue
    return made


def row_in_words(row: dict[str, Any]) -> str:
    if row.get("error") is None:
        return f"{row['status']} {row.get('what') or ''}"
    equal = "counters equal" if row["counters_equal"] else "COUNTERS DIFFER"
    return (
        f"{row['measured_tokens_per_s']:.1f} t/s, predicted {row['predicted_tokens_per_s']:.1f} "
        f"({row['error']:+.1%}), hits {row['hit_rate']:.1%}, {equal}, "
        f"{'verified' if row['verified'] else 'VOID'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("out", type=Path, help="folder for results")
    parser.add_argument("--tokens", type=int, default=300, help="tokens a cell is run for")
    parser.add_argument("--minutes", type=float, default=5.8, help="for everything together")
    parser.add_argument("--backend", choices=("cuda", "host"), default="cuda")
    parser.add_argument("--dtype", default="mxfp4", help="type of the weights")
    parser.add_argument("--quick", action="store_true", help="tiny experts, to see that it works")
    parser.add_argument("--cells", type=int, help="only so many cells, the most wanted first")
    args = parser.parse_args()
    if not args.trace.is_file():
        sys.exit(f"error: {args.trace}: no such trace")
    args.out.mkdir(parents=True, exist_ok=True)
    from replay.backend import backend
    from replay.calibrate.calibration import calibrate
    from replay.calibrate.calibration import write as write_profile
    from replay.records import write_json
    from replay.session import Session
    from traces.errors import InputError

    began = time.monotonic()
    end = began + 60 * args.minutes
    try:
        with Session(backend(args.backend)) as session:
            session.devices(2)  # says at once where there is one only
    except InputError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(2)
    calibration = calibrate(args.backend, quick=args.quick or None, without=LEFT_OUT, say=say)
    write_profile(calibration, args.out / PROFILE, "h100")
    kept = link_kept(calibration.tables)
    shared = kept is not None and kept < HALF
    say(f"calibrated after {time.monotonic() - began:.0f} s; link kept while both copy: {kept}")
    wanted = cells()[: args.cells]
    workers = min(16, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        asked = {c.key: pool.submit(predict, c, args, shared) for c in wanted}
        predicted = {key: future.result() for key, future in asked.items()}
    say(f"{len(predicted)} cells predicted after {time.monotonic() - began:.0f} s")
    result: dict[str, Any] = {
        "trace": args.trace.name, "tokens": args.tokens, "backend": args.backend,
        "machine": machine_record() | calibration.machine, "peers": calibration.tables.get("peers"),
        "calibration_errors": calibration.errors, "link_kept": kept, "shared_link": shared,
        "asked": [asdict(c) for c in wanted], "predicted": predicted, "measured": {}, "cells": {},
    }  # fmt: skip
    write_json(args.out / RESULT, result)
    longest = 0.0
    with Session(backend(args.backend)) as session:
        for cell in wanted:
            if time.monotonic() + longest > end:
                say("no time for the others")
                break
            try:
                found = measure(session, cell, args, shared)
                longest = max(longest, found["seconds"]) if result["measured"] else 0.0
            except Exception as err:  # one cell that fails leaves the others
                traceback.print_exc()
                found = {"status": "error", "what": f"{type(err).__name__}: {err}"}
            result["measured"][cell.key] = found
            result["cells"][cell.key] = compared(predicted[cell.key], found)
            say(f"{cell.key}: {row_in_words(result['cells'][cell.key])}")
            errors = [
                abs(r["error"]) for r in result["cells"].values() if r.get("error") is not None
            ]
            result |= {
                "mean_error": sum(errors) / len(errors) if errors else None,
                "worst_error": max(errors, default=None),
                "seconds": round(time.monotonic() - began, 1),
                "not_measured": [c.key for c in wanted if c.key not in result["measured"]],
            }
            write_json(args.out / RESULT, result)
    rows = result["cells"]
    if result.get("mean_error") is not None:
        say(f"mean error {result['mean_error']:.1%}, worst {result['worst_error']:.1%}")
    say(f"finished in {time.monotonic() - began:.0f} s")
    if bad := [k for k, r in rows.items() if not (r.get("verified") and r.get("counters_equal"))]:
        sys.exit(f"error: wrong or void: {', '.join(bad)}")
    if args.backend == "cuda":
        off = [k for k, r in rows.items() if r["error"] is not None and abs(r["error"]) > WANTED]
        if off:
            say(f"more than {WANTED:.0%} off: {', '.join(off)}")


if __name__ == "__main__":
    main()
