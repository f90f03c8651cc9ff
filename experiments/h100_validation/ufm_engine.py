"""The UFM benchmark's workload on our engine: predicted, then measured.

One layer of N fp32 experts of 0.125 GiB, top-2 of an untrained router on 512 random tokens a step,
experts called one after the other in the order of their numbers; the workload is that of
experiments/rtx4090_ufm. The pool holds what 16 GB less 1 hold, 120 experts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "rtx4090_ufm"))

import ufm_model

STEPS, WARM_UP = 5, 2
POLICIES = ("lru", "mru", "belady")


def jobs(n: int, hardware: Any, quick: bool) -> dict[str, tuple[str, Any]]:
    """Name -> (mode, job) of what is run with ``n`` experts."""
    from replay.validate.grid import as_replayed
    from uvmsim.machine.model import Model
    from uvmsim.policies.registry import parse
    from uvmsim.runs.job import Job
    from uvmsim.workload import build_workload

    info = ufm_model.info(n)
    model = Model.from_info(info, expert_bytes=64 * 1024 if quick else None)
    workload = ufm_model.one_by_one(build_workload(ufm_model.routing(n, STEPS)))
    base = Job(workload, as_replayed(model, "fp32"), hardware)
    slots = min(n, ufm_model.slots_within(ufm_model.TARGET_GIB))
    made = {"all-resident": ("resident", base), "stream": ("stream", base)}
    for policy in POLICIES:
        made[policy] = ("expert-cache", replace(base, policy=parse(policy), slots=slots))
    return made


def fp32_rate(profile: Path) -> int | None:
    """Bytes a second of the fp32 expert kernel, of the calibration's largest expert: the profile
    itself has the MXFP4 kernel's."""
    try:
        tables = json.loads(profile.with_suffix(".measurements.json").read_text())["tables"]
        rows = [r for r in tables["kernels"] if r.get("dtype") == "fp32" and r["tokens"] == 1]
        return int(max(rows, key=lambda r: (r["expert_bytes"], -r["experts"]))["bytes_per_s"])
    except (OSError, ValueError, KeyError):
        return None


def tokens_per_s(step_end: Any) -> float:
    """Over the steps after the warm-up; ``step_end`` in ns."""
    seconds = float(step_end[-1] - step_end[WARM_UP - 1]) / 1e9
    return ufm_model.TOKENS * (STEPS - WARM_UP) / seconds


def study(backend: str, profile: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Rows with predicted and measured tokens/s, hits and misses."""
    import numpy as np

    from replay.backend import backend as open_backend
    from replay.results import verified
    from replay.session import How, Session
    from uvmsim.machine.hardware import Hardware
    from uvmsim.studies.simulate import simulate

    hardware = Hardware.load(str(profile))
    rate = fp32_rate(profile)
    if rate:
        hardware = replace(hardware, engine=replace(hardware.engine, expert_bytes_per_s=rate))
    counts = (6, 12) if quick else ufm_model.COUNTS
    todo = [(n, name, *what) for n in counts for name, what in jobs(n, hardware, quick).items()]
    predicted = []
    for n, name, mode, job in todo:
        result = simulate(job, mode)
        row: dict[str, Any] = {"experts": n, "name": name, "mode": mode, "slots": job.slots}
        if result.timeline is None:
            predicted.append(row | {"predicted": None})
            continue
        made = result.to_json()
        predicted.append(
            row | {"predicted": tokens_per_s(result.step_end), "hits": made["hits"],
                   "misses": made["misses"]}
        )  # fmt: skip
    say(f"predicted {len(predicted)} runs")
    rows, machine = [], {}
    with Session(open_backend(backend), How(dtype="fp32", bank_limit=26 << 30)) as session:
        for row, (n, name, mode, job) in zip(predicted, todo, strict=True):
            try:
                done = session.run(job, mode)
                machine = done.about["machine"]
                if done.counters is None:
                    row["error"] = f"does not fit: {done.does_not_fit}"
                else:
                    row |= {
                        "measured": tokens_per_s(np.cumsum(done.step_ns)),
                        "verified": verified(done),
                        "counters_equal": (done.counters.hits, done.counters.misses)
                        == (row.get("hits"), row.get("misses")),
                    }
            except Exception as err:
                row["error"] = f"{type(err).__name__}: {err}"
            rows.append(row)
            say(f"ufm {n} experts, {name}: {row.get('measured') or row.get('error')}")
    return {"machine": machine, "tokens_a_step": ufm_model.TOKENS, "rows": rows}
