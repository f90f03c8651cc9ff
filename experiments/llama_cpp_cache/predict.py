"""Replay a captured routing in the simulator with `llama-cpp-lru`, and compare with llama.cpp.

The prediction of speed comes from the hardware profile and the trace alone: the mechanism
`expert-cache`, where a layer's misses are copied before its experts are computed.

    python predict.py results.json      # the tables of a finished run
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from make_model import TENSOR_BYTES  # also makes the repository importable

from traces.files.schema import DECODE
from traces.routing import open_routing
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.runs.plan import DEMAND
from uvmsim.studies.simulate import simulate
from uvmsim.workload import build_workload

WARM = 8
"""Decode steps left out of all speeds: first calls of kernels, CUDA graphs being recorded."""
_ALIGNMENT = 128


def slots_of(mib: int, tensor_bytes: int, n_experts_total: int) -> int:
    """Slots llama.cpp makes of ``--moe-cache-mib``: each of an expert's three tensors has a bank of
    its own with one slot to spare, padded to the device's alignment."""

    def bank(slots: int) -> int:
        return -(-tensor_bytes * (slots + 1) // _ALIGNMENT) * _ALIGNMENT

    slots = 0
    while slots < n_experts_total and 3 * bank(slots + 1) <= mib << 20:
        slots += 1
    return slots


def replay(trace_path: Path, slots: int, hardware: str, pinned: bool) -> dict[str, Any]:
    """Counters as llama.cpp counts them, and the predicted duration of each decode step."""
    trace = open_routing(trace_path)
    model = Model.from_info(trace.meta.model)
    work = build_workload(trace)
    job = Job(
        work, model, Hardware.load(hardware), policy=parse("llama-cpp-lru"), slots=slots, pinned=pinned
    )  # fmt: skip
    result = simulate(job)
    plan, timeline = result.trail.plan, result.trail.timeline
    assert plan is not None and timeline is not None
    c = plan.counters
    misses = c.misses - (c.bypassed - c.bypassed_hits)
    # Copies of bypassed events are no uploads into the cache.
    expert = model.expert_bytes[0]
    assert plan.bytes_of(DEMAND) == expert * c.misses
    duration = np.diff(timeline.step_end, prepend=0)
    plain_lru = simulate(replace(job, policy=parse("lru"))).trail.plan
    assert plain_lru is not None
    return {
        "slots": plan.slots,
        "hits": c.hits - c.bypassed_hits,
        "misses": misses,
        "uploaded_mib": round(misses * expert / 2**20, 2),
        "large_batch_tensors": 3 * c.bypassed_hits,
        "decode_ns": duration[work.step_phase == DECODE].tolist(),
        "plain_lru": {"hits": plain_lru.counters.hits, "misses": plain_lru.counters.misses},
    }


def resident(trace_path: Path, hardware: str) -> list[int]:
    """The predicted duration of each decode step with all experts in device memory."""
    trace = open_routing(trace_path)
    work = build_workload(trace)
    job = Job(work, Model.from_info(trace.meta.model), Hardware.load(hardware))
    timeline = simulate(job, "resident").trail.timeline
    assert timeline is not None
    steps: list[int] = np.diff(timeline.step_end, prepend=0)[work.step_phase == DECODE].tolist()
    return steps


def tokens_per_s(steps_ns: list[int]) -> float | None:
    """One token a step, the first `WARM` steps left out."""
    rest = steps_ns[WARM:]
    return round(len(rest) / sum(rest) * 1e9, 2) if rest else None


MUST = ("hits", "misses", "uploaded_mib")
COUNTERS = (*MUST, "large_batch_tensors")


def judge(cell: dict[str, Any], work: Path, hardware: str) -> dict[str, Any]:
    """One line of the table from a cell's measurements."""
    part = cell.get("turns") or cell["mixed"]
    theirs = part["counts"]["captured"]
    if theirs is None:
        ours = {"decode_ns": resident(work / part["trace"], hardware)}
        head = {"name": cell["name"], "memory": cell["memory"], "mib": cell["mib"]}
        return head | speeds(cell, ours)
    # A context prints its slots when it is made: those of a pair come with the first that is closed.
    logged = (part["counts"].get("plain") or theirs)["slots"] or theirs["slots"]
    expected = slots_of(cell["mib"], TENSOR_BYTES, 16 * 64)
    ours = replay(work / part["trace"], logged[0], hardware, cell["memory"] == "pinned")
    line: dict[str, Any] = {
        "name": cell["name"],
        "memory": cell["memory"],
        "mib": cell["mib"],
        "slots_llama_cpp": logged[0],
        "slots_computed": expected,
        "llama_cpp": {k: theirs[k] for k in COUNTERS},
        "uvmsim": {k: ours[k] for k in COUNTERS},
        "plain_lru": ours["plain_lru"],
    }
    line["equal"] = all(theirs[k] == ours[k] for k in MUST)
    line["large_batches_equal"] = theirs["large_batch_tensors"] == ours["large_batch_tensors"]
    if "turns" not in cell:
        return line
    without = {k: cell["alone"]["counts"][k] for k in COUNTERS}
    line["same_counts_without_capture"] = without == line["llama_cpp"]
    line["without_capture"] = without
    return line | speeds(cell, ours)


def speeds(cell: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Measured and predicted tokens a second, and what capture costs a token."""
    alone, turns = cell["alone"], cell["turns"]
    measured, predicted = tokens_per_s(alone["decode_ns"]), tokens_per_s(ours["decode_ns"])
    plain, captured = (np.array(turns[k][WARM:]) / 1e6 for k in ("plain_ns", "captured_ns"))
    return {
        "tokens_per_s_measured": measured,
        "tokens_per_s_predicted": predicted,
        "error": round(predicted / measured - 1, 4) if measured and predicted else None,
        "plain_ms": round(float(np.median(plain)), 3),
        "captured_ms": round(float(np.median(captured)), 3),
        "paired_difference_ms": round(float(np.median(captured - plain)), 3),
    }


def table(lines: list[dict[str, Any]], completions: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""

    def both(line: dict[str, Any], key: str) -> str:
        a, b = line["llama_cpp"][key], line["uvmsim"][key]
        return f"{a:,} / {b:,}"

    out = [
        "| run | slots | hits llama.cpp / uvmsim | misses | MiB uploaded | equal | "
        "tokens/s measured | predicted | error | ms/token plain | with capture |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for x in lines:
        speed = " | | | | |"
        if x.get("tokens_per_s_measured"):
            speed = (
                f"{x['tokens_per_s_measured']:,.1f} | {x['tokens_per_s_predicted']:,.1f} | "
                f"{x['error']:+.1%} | {x['plain_ms']:.2f} | {x['captured_ms']:.2f} |"
            )
        if "failed" in x:
            counts = f"failed: {x['failed']} | | | | |"
        elif "llama_cpp" not in x:
            counts = "| | | | |"
        else:
            counts = (
                f"{x['slots_llama_cpp']} | {both(x, 'hits')} | {both(x, 'misses')} | "
                f"{both(x, 'uploaded_mib')} | {'yes' if x['equal'] else '**NO**'} |"
            )
        out.append(f"| {x['name']} | {counts} {speed}")
    if completions:
        out += [
            "",
            "| llama-completion, no capture | hits | misses | MiB uploaded | tokens/s |",
            "|---|---|---|---|---|",
        ]
        for c in completions:
            n = c.get("counts") or {}
            out.append(
                f"| {c['mib']} MiB | {n.get('hits', '-')} | {n.get('misses', '-')} | "
                f"{n.get('uploaded_mib', '-')} | {c.get('tokens_per_s') or c.get('error', '-')} |"
            )
    return "\n".join(out) + "\n"


def main(path: str) -> None:
    """Print the tables of a results.json."""
    data = json.loads(Path(path).read_text())
    print(table(data["cells"], data["completions"]), end="")


if __name__ == "__main__":
    main(sys.argv[1])
