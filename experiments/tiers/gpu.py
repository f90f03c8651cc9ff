"""Experts in VRAM, host memory and on a real disk: calibrated, predicted, then measured, in under six
minutes and with at most 30 GB written.

    python experiments/tiers/gpu.py --disk /mnt/nvme --out tiers.json

Three policies of VRAM x two sizes of host memory x reads past the page cache and through it. The
decode tokens of TRACE (the bundled one) run with gpt-oss-20b's experts. Every cell is predicted from
the calibration before the first is measured; tokens are as many as the predictions say there is time
for. One JSON is written, whole, whenever a cell is done; the experts' file is removed at the end.
``--backend host --quick`` runs the same path without a GPU on tiny experts: its times mean nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from replay.records import write_json

LEFT_OUT = (
    "faults", "migrations", "uvm_mode", "fault_groups", "paging", "zero_copy", "pageable_h2d",
    "pageable_d2h", "pinned_alloc", "cpu", "cpu_experts", "policies",
)  # fmt: skip
"""Stages of the calibration that have no bearing on copies, kernels or the disk."""
POLICIES = ("lru", "layer-lru", "lru+next-layer")
SHARES = (0.3, 0.6)
"""Host memory, of all experts."""
MODES = ("direct", "buffered")
DEPTH = 4
"""Reads admitted at a time; each is cut into pieces that 16 threads read."""
SIZE = "gpt-oss-20b"
LEAST = 20
"""Tokens; fewer say nothing of a policy."""
COUNTED = ("slots", "accesses", "hits", "misses", "evictions", "bytes_h2d", "ram")
KEPT = (*COUNTED, "hit_rate", "decode_tokens_per_s", "time_s", "time_split_s")


def cells() -> Iterator[tuple[str, str, float]]:
    """Mode, policy and share of the experts in host memory, the most wanted first."""
    for mode in MODES:
        for policy in POLICIES:
            for share in SHARES:
                yield mode, policy, share


def key_of(cell: tuple[str, str, float]) -> str:
    mode, policy, share = cell
    return f"{mode}/{policy}/ram {share:.0%}"


def trace_of(args: argparse.Namespace, tokens: int) -> Any:
    from traces.routing.filter import filtered
    from uvmsim.studies.resolve import load_trace

    return filtered(load_trace(args.trace), phase="decode")[0].head(tokens)


def job_of(
    cell: tuple[str, str, float], args: argparse.Namespace, profile: Path, trace: Any
) -> Any:
    """A cell as the engine runs it: gpt-oss-20b's sizes, the arithmetic of the engine's kernels."""
    from replay.validate.grid import as_replayed
    from uvmsim.machine.hardware import Hardware
    from uvmsim.policies.registry import parse
    from uvmsim.studies.resolve import base_job, resolve_model, slots_of
    from uvmsim.studies.scenario import Scenario
    from uvmsim.workload import build_workload

    mode, policy, share = cell
    scenario = Scenario(trace, expert_size=args.expert_size or ("64KiB" if args.quick else SIZE))
    model = as_replayed(resolve_model(scenario, trace, []), args.dtype)
    workload = build_workload(trace)
    total = workload.n_layers * workload.n_experts
    ram = int(share * total) * max(model.expert_bytes)
    scenario = scenario.with_(ram=ram, tier=f"disk:mode={mode},qd={DEPTH}")
    job = base_job(scenario, workload, model, Hardware.load(str(profile)), None)
    return replace(job, policy=parse(policy), slots=slots_of("25%", total))


def told(run: Any) -> dict[str, Any]:
    d = run.to_json()
    return {k: d.get(k) for k in KEPT} | {"status": run.status}


def predict(args: argparse.Namespace, profile: Path, tokens: int) -> dict[str, Any]:
    from uvmsim.studies.simulate import simulate

    trace = trace_of(args, tokens)
    return {key_of(c): told(simulate(job_of(c, args, profile, trace))) for c in cells()}


def measure(session: Any, cell: Any, args: argparse.Namespace, profile: Path, trace: Any) -> Any:
    began = time.monotonic()
    run = session.run(job_of(cell, args, profile, trace))
    made = told(run) | {"problems": run.problems, "step_ns": run.step_ns.tolist()}
    d = run.to_json()
    made |= {k: d.get(k) for k in ("verified", "options", "host_issue_s", "copy_busy_s")}
    made["machine"] = run.about["machine"]
    return made | {"seconds": round(time.monotonic() - began, 2)}


def compared(want: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    """A cell's row of the report."""
    if "hits" not in got:
        return got
    p, m = want["decode_tokens_per_s"], got["decode_tokens_per_s"]
    return {
        "verified": got["verified"],
        "counters_equal": all(want[k] == got[k] for k in COUNTED),
        "predicted_tokens_per_s": p, "measured_tokens_per_s": m, "error": p / m - 1,
        "predicted_split_s": want["time_split_s"], "measured_split_s": got["time_split_s"],
    }  # fmt: skip


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


def calibrate(args: argparse.Namespace, profile: Path) -> dict[str, Any]:
    if args.profile is not None:
        shutil.copyfile(args.profile, profile)
        return {"profile": profile.read_text()}
    from replay.calibrate.calibration import calibrate as measured
    from replay.calibrate.calibration import write as write_profile

    found = measured(
        args.backend, quick=args.quick or None, without=LEFT_OUT, disk=args.disk, say=say
    )
    write_profile(found, profile, "h100")
    return found.to_json() | {"profile": profile.read_text()}


def fitting(args: argparse.Namespace, profile: Path) -> tuple[int, dict[str, Any]]:
    """As many tokens as there is time for, and their predictions."""
    tokens = min(args.tokens, trace_of(args, args.tokens).n_tokens)
    while True:
        made = predict(args, profile, tokens)
        seconds = sum(r["time_s"] for r in made.values())
        if seconds <= args.seconds or tokens <= LEAST:
            return tokens, made
        say(f"{tokens} tokens would take {seconds:.0f} s in all")
        tokens = max(LEAST, min(tokens - 1, int(tokens * args.seconds / seconds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--disk", type=Path, required=True, help="folder on the disk")
    parser.add_argument(
        "--out", type=Path, default=Path("tiers.json"), help="the results, one JSON"
    )
    parser.add_argument("--trace", type=Path, help="routing, top-4; the bundled one")
    parser.add_argument("--tokens", type=int, default=400, help="decode tokens a cell, at most")
    parser.add_argument("--seconds", type=float, default=150, help="for all cells, as predicted")
    parser.add_argument("--minutes", type=float, default=5.8, help="for everything together")
    parser.add_argument("--bytes", type=float, default=30e9, help="most bytes of the experts' file")
    parser.add_argument("--backend", choices=("cuda", "host"), default="cuda")
    parser.add_argument("--expert-size", help="gpt-oss-20b's; with --quick 64KiB")
    parser.add_argument("--dtype", default="mxfp4", help="type of the weights")
    parser.add_argument("--profile", type=Path, help="a calibration of before, with its [disk]")
    parser.add_argument("--quick", action="store_true", help="tiny experts, to see that it works")
    parser.add_argument("--keep", action="store_true", help="keep the experts' file")
    args = parser.parse_args()
    before = set(args.disk.glob("experts-*.bank"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            bad = run(args, Path(folder) / "calibration.toml")
    finally:
        for file in set() if args.keep else set(args.disk.glob("experts-*.bank")) - before:
            file.unlink()
    if bad:
        sys.exit(f"error: wrong, void or not measured: {', '.join(bad)}")


def run(args: argparse.Namespace, profile: Path) -> list[str]:
    """Everything; returns the cells that cannot be believed."""
    from replay.backend import backend
    from replay.session import How, Session

    began = time.monotonic()
    result: dict[str, Any] = {"backend": args.backend, "calibration": calibrate(args, profile)}
    say(f"calibrated after {time.monotonic() - began:.0f} s")
    tokens, predicted = fitting(args, profile)
    result |= {"tokens": tokens, "predicted": predicted, "measured": {}, "report": {}}
    write_json(args.out, result)
    say(
        f"{len(predicted)} cells of {tokens} tokens predicted after {time.monotonic() - began:.0f} s"
    )
    trace, longest = trace_of(args, tokens), 0.0
    how = How(dtype=args.dtype, tier_file=args.disk, tier_bytes=int(args.bytes))
    with Session(backend(args.backend), how) as session:
        for cell in cells():
            key = key_of(cell)
            if time.monotonic() - began + longest > 60 * args.minutes:
                say("no time for the others")
                break
            try:
                found = measure(session, cell, args, profile, trace)
                longest = max(longest, found["seconds"]) if result["measured"] else longest
            except Exception as err:  # one cell that fails leaves the others
                traceback.print_exc()
                found = {"status": "error", "what": f"{type(err).__name__}: {err}"}
            result["measured"][key] = found
            result["report"][key] = row = compared(predicted[key], found)
            result["seconds"] = round(time.monotonic() - began, 1)
            write_json(args.out, result)
            say(f"{key}: {line(row)}")
    rows = result["report"].values()
    errors = [abs(r["error"]) for r in rows if "error" in r]
    if errors:
        mean = sum(errors) / len(errors)
        say(f"{len(errors)} cells: mean error {mean:.1%}, worst {max(errors):.1%}")
    return [k for k in predicted if not _believed(result["report"].get(k, {}))]


def _believed(row: dict[str, Any]) -> bool:
    return bool(row.get("verified") and row.get("counters_equal"))


def line(row: dict[str, Any]) -> str:
    """A cell in words."""
    if "error" not in row:
        return f"{row['status']} {row.get('what', '')}"
    equal = "counters equal" if row["counters_equal"] else "COUNTERS DIFFER"
    return (
        f"{row['measured_tokens_per_s']:.2f} t/s, predicted {row['predicted_tokens_per_s']:.2f} "
        f"({row['error']:+.1%}), {equal}, {'verified' if row['verified'] else 'VOID'}"
    )


if __name__ == "__main__":
    main()
