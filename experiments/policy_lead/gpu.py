"""Policies and what becomes of misses on a GPU: calibrated, predicted, then measured, in under
eight minutes.

    python experiments/policy_lead/gpu.py TRACE --out DIR

TRACE: routing of gpt-oss-20b (24 layers x 32 experts, top-4), a few hundred decode tokens. Every
cell is predicted from the calibration, and all predictions are written, before the first is
measured; what there is no time for is said. DIR gets calibration.toml, predictions.json,
measurements.json and report.json, each whole as soon as there is one. ``--backend host --quick``
runs the same path without a GPU on tiny experts, to see that it works: its times mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from replay.records import write_json

HERE = Path(__file__).resolve().parent
PROFILE = "calibration.toml"
LEFT_OUT = ("faults", "migrations", "uvm_mode", "fault_groups", "paging")
"""Stages of the calibration that have no bearing on copies, kernels or the CPU."""


@dataclass(frozen=True)
class Cell:
    """One thing to predict and to run."""

    mode: str
    policy: str
    size: str
    pool: str = "global"
    behind: bool = False
    pieces: str | None = None
    pageable: bool = False

    @property
    def key(self) -> str:
        words = [self.mode, self.pool, self.size, self.policy]
        words += ["behind"] * self.behind + ["pageable"] * self.pageable
        return "/".join(words + ([f"pieces {self.pieces}"] if self.pieces else []))


AHEAD = "learned+learned-next:ahead=2"
CACHE = ("lru", "learned", AHEAD, "lrfu", "layer-lru", "belady")
SIZES = ("25%", "12.5%", "50%")


def cells() -> list[Cell]:
    """The most wanted first: time may run out."""
    made = [Cell("expert-cache", p, "25%") for p in CACHE]
    made += [Cell("hybrid", p, "25%") for p in ("lru", "learned")]
    made += [Cell("expert-cache", p, "25%", pieces="4MiB") for p in (AHEAD, "lru+next-layer")]
    made += [Cell("expert-cache", "lru+next-layer", "25%")]
    made += [
        Cell("expert-cache", p + more, "12.5%", "per-layer")
        for p in ("learned", "belady", "lru")
        for more in ("", ":bypass=1")
    ]
    made += [Cell("expert-cache", p, size) for size in SIZES[1:] for p in CACHE]
    made += [
        Cell("hybrid", "learned", "25%", behind=True),
        Cell("hybrid", "learned:bypass=1", "25%"),
        Cell("hybrid", "learned:bypass=1", "12.5%", "per-layer"),
        Cell("hybrid", "lrfu", "25%"),
        Cell("expert-cache", "learned:bypass=1", "25%"),
        Cell("expert-cache", "lrfu", "12.5%", "per-layer"),
        Cell("expert-cache", "lrfu:bypass=1", "12.5%", "per-layer"),
        Cell("expert-cache", "learned", "25%", "per-layer"),
        Cell("expert-cache", "learned:bypass=1", "25%", "per-layer"),
    ]
    return made


def job_of(cell: Cell, args: argparse.Namespace) -> Any:
    """The cell as the engine runs it: gpt-oss-20b's sizes, the arithmetic of the engine's kernels."""
    from replay.validate.grid import as_replayed
    from uvmsim.machine.hardware import Hardware
    from uvmsim.policies.registry import parse
    from uvmsim.studies.resolve import base_job, load_trace, resolve_model, slots_of
    from uvmsim.studies.scenario import Scenario
    from uvmsim.workload import build_workload

    scenario = Scenario(
        str(args.trace), model=None if args.quick else "gpt-oss-20b",
        expert_size="64KiB" if args.quick else None, limit=args.tokens, pool=cell.pool,
        behind=cell.behind, prefetch_pieces=cell.pieces, pageable=cell.pageable,
    )  # fmt: skip
    trace = load_trace(scenario.trace, scenario.limit)
    model = as_replayed(resolve_model(scenario, trace, []), args.dtype)
    workload = build_workload(trace)
    job = base_job(scenario, workload, model, Hardware.load(str(args.out / PROFILE)), None)
    total = workload.n_layers * workload.n_experts
    return replace(job, ncmoe=0, policy=parse(cell.policy), slots=slots_of(cell.size, total))


COUNTED = ("slots", "accesses", "hits", "misses", "misses_by", "evictions", "bytes_h2d", "prefetch")


def told(result: Any) -> dict[str, Any]:
    """What is kept of a run, predicted or measured."""
    if result.does_not_fit is not None:
        return {"status": result.status, "what": str(result.does_not_fit)}
    d = result.to_json()
    kept = {k: d.get(k) for k in (*COUNTED, "hit_rate", "decode_tokens_per_s", "time_split_s")}
    return kept | {"status": result.status, "notes": result.notes}


def predict(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: kernels are compiled side by side, and found again by the
    measurement."""
    from uvmsim.studies.simulate import simulate

    try:
        return told(simulate(job_of(cell, args), cell.mode))
    except Exception as err:
        return {"status": "error", "what": f"{type(err).__name__}: {err}"}


def measure(session: Any, cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    from replay.session import How

    begun = time.monotonic()
    run = session.run(job_of(cell, args), cell.mode, How(dtype=args.dtype))
    made = told(run) | {"problems": run.problems, "step_ns": run.step_ns.tolist()}
    if run.trail is not None:
        d = run.to_json()
        made |= {
            k: d.get(k) for k in ("verified", "options", "host_issue_s", "cpu_s", "copy_busy_s")
        }
        made["machine"] = run.about["machine"]
    return made | {"seconds": round(time.monotonic() - begun, 2)}


def compared(predicted: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """A cell's row of the report."""
    row: dict[str, Any] = {"status": measured.get("status"), "verified": measured.get("verified")}
    if "hits" not in measured or "hits" not in predicted:
        return row | {"what": measured.get("what") or predicted.get("what")}

    def counts(d: dict[str, Any]) -> dict[str, Any]:
        prefetch = d["prefetch"] or {}
        whole = {k: d[k] for k in COUNTED if k != "prefetch"}
        return whole | {k: prefetch.get(k) for k in ("issued", "wasted")}

    want, got = predicted["decode_tokens_per_s"], measured["decode_tokens_per_s"]
    return row | {
        "counters_equal": counts(predicted) == counts(measured),
        "hit_rate": measured["hit_rate"], "misses_by": measured["misses_by"],
        "predicted_tokens_per_s": want, "measured_tokens_per_s": got,
        "error": want / got - 1 if want and got else None,
    }  # fmt: skip


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


def calibrate(args: argparse.Namespace) -> None:
    from replay.calibrate.calibration import calibrate as measured
    from replay.calibrate.calibration import write as write_profile

    found = measured(args.backend, quick=args.quick or None, without=LEFT_OUT, say=say)
    write_profile(found, args.out / PROFILE, "h100")


def report(args: argparse.Namespace, predicted: dict, found: dict, began: float) -> dict[str, Any]:
    rows = {k: compared(predicted[k], found[k]) for k in predicted if k in found}
    errors = [abs(r["error"]) for r in rows.values() if r.get("error") is not None]
    return {
        "trace": args.trace.name, "tokens": args.tokens, "backend": args.backend,
        "cells": rows, "not_measured": [k for k in predicted if k not in found],
        "mean_error": sum(errors) / len(errors) if errors else None,
        "worst_error": max(errors, default=None),
        "counters_equal_in": sum(bool(r.get("counters_equal")) for r in rows.values()),
        "verified_in": sum(bool(r.get("verified")) for r in rows.values()),
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results_gpu", help="folder for results")
    parser.add_argument("--tokens", type=int, default=400, help="tokens a cell is run for")
    parser.add_argument("--minutes", type=float, default=7.6, help="for everything together")
    parser.add_argument("--backend", choices=("cuda", "host"), default="cuda")
    parser.add_argument("--dtype", default="mxfp4", help="type of the weights")
    parser.add_argument("--quick", action="store_true", help="tiny experts, to see that it works")
    parser.add_argument("--cells", type=int, help="only so many cells, the most wanted first")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    end = began + 60 * args.minutes
    calibrate(args)
    say(f"calibrated after {time.monotonic() - began:.0f} s")
    wanted = cells()[: args.cells]
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1), get_context("spawn")) as pool:
        asked = {c.key: pool.submit(predict, c, args) for c in wanted}
        predicted = {key: future.result() for key, future in asked.items()}
    write_json(
        args.out / "predictions.json", {"cells": predicted, "asked": [asdict(c) for c in wanted]}
    )
    say(f"{len(predicted)} cells predicted after {time.monotonic() - began:.0f} s")
    from replay.backend import backend
    from replay.session import Session

    found: dict[str, Any] = {}
    longest, made = 0.0, report(args, predicted, {}, began)
    with Session(backend(args.backend)) as session:
        for cell in wanted:
            if time.monotonic() + longest > end:
                say("no time for the others")
                break
            try:
                found[cell.key] = measure(session, cell, args)
                longest = max(longest, found[cell.key]["seconds"]) if len(found) > 1 else longest
            except Exception as err:  # one cell that fails leaves the others
                traceback.print_exc()
                found[cell.key] = {"status": "error", "what": f"{type(err).__name__}: {err}"}
            write_json(args.out / "measurements.json", found)
            made = report(args, predicted, found, began)
            write_json(args.out / "report.json", made)
            say(f"{cell.key}: {line(made['cells'][cell.key])}")
    bad = [k for k, r in made["cells"].items() if not (r.get("verified") and r["counters_equal"])]
    off = "nothing was measured"
    if made["mean_error"] is not None:
        off = f"mean error {made['mean_error']:.1%}, worst {made['worst_error']:.1%}"
    say(f"finished in {time.monotonic() - began:.0f} s; {off}")
    if bad:
        sys.exit(f"error: wrong or void: {', '.join(bad)}")


def line(row: dict[str, Any]) -> str:
    """A cell in words."""
    if row.get("error") is None:
        return f"{row['status']} {row.get('what') or ''}"
    equal = "counters equal" if row["counters_equal"] else "COUNTERS DIFFER"
    return (
        f"{row['measured_tokens_per_s']:.1f} t/s, predicted {row['predicted_tokens_per_s']:.1f} "
        f"({row['error']:+.1%}), hits {row['hit_rate']:.1%}, {equal}, "
        f"{'verified' if row['verified'] else 'VOID'}"
    )


if __name__ == "__main__":
    main()
