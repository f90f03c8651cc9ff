"""What prefetches in pieces are worth on real routing, and how far a step is from its bounds.

    python experiments/policy_lead/pieces.py ROUTING

ROUTING as for run.py. Decisions are made once a policy and size, and priced for each way to move
prefetches. Writes pieces.json and prints the table of README.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from run import HERE, SLOTS, part_of

from uvmsim.mechanisms import mechanism
from uvmsim.runs.outcome import Outcome
from uvmsim.runs.plan import DEMAND, WRITEBACK
from uvmsim.studies.compare import compare
from uvmsim.studies.scenario import Scenario

POLICIES = (
    "lru+next-layer", "learned+learned-next", "learned+learned-next:ahead=2:budget=7.1e6",
    "learned+learned-next:ahead=3:budget=7.1e6",
)  # fmt: skip
WAYS = {
    "as it was": 0,
    "awaited first": 64 << 20,
    "4 MiB": 4 << 20,
    "2 MiB": 2 << 20,
    "1 MiB": 1 << 20,
}
"""Bytes of a piece; one larger than an expert only lets go first what is waited for."""


def measured(run: Outcome) -> dict[str, Any]:
    """Tokens/s, seconds in all, and over the larger of copies and kernels; ``floor``: what that would
    be at best with these decisions, for a miss is unknown before its layer's router has run: kernels
    and demand copies never overlap."""
    plan, made = run.trail.plan, run.to_json()
    copies = int(plan.copy_ns[plan.copy_kind != WRITEBACK].sum())
    kernels = int(plan.pre_ns.sum() + plan.compute_ns.sum())
    demand = int(plan.copy_ns[plan.copy_kind == DEMAND].sum())
    most = max(copies, kernels)
    return {
        "tokens_per_s": made["decode_tokens_per_s"],
        "time_s": made["time_s"],
        "copies_s": copies / 1e9,
        "kernels_s": kernels / 1e9,
        "demand_s": demand / 1e9,
        "over": made["time_s"] * 1e9 / most,
        "floor": max(copies, kernels + demand) / most,
        "prefetch": made["prefetch"],
    }


def by_way(trace: Path, policy: str, slots: str) -> dict[str, dict[str, Any]]:
    """`measured` of each of `WAYS`."""
    (run,) = compare(Scenario(trace, slots=slots, policies=policy)).runs
    cache = mechanism("expert-cache")
    return {
        way: measured(cache.again(run, replace(run.job, prefetch_pieces=size)))
        for way, size in WAYS.items()
    }


def main(routing: Path) -> None:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in ("gpqa_main, test", "mmlu_dev, test"):
            trace = part_of(routing, Path(folder), part)
            for policy in POLICIES:
                for slots in SLOTS:
                    ways = found[f"{part} | {policy} | {slots}"] = by_way(trace, policy, slots)
                    cells = [f"{w['tokens_per_s']:.1f}, {w['over']:.2f}" for w in ways.values()]
                    floor = ways["as it was"]["floor"]
                    print(
                        f"| {part} | {policy} | {slots} | {floor:.2f} | " + " | ".join(cells), "|"
                    )
    bound = [w for w in found.values() if w["as it was"]["copies_s"] > w["as it was"]["kernels_s"]]
    for way in WAYS:
        over = [w[way]["over"] for w in bound]
        above = [w[way]["over"] / w[way]["floor"] for w in bound]
        print(
            f"{way}: over {np.median(over):.3f} (worst {max(over):.3f}), over its floor "
            f"{np.median(above):.3f} (worst {max(above):.3f}), {len(bound)} cells"
        )
    (HERE / "pieces.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
