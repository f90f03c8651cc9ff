"""Prefetchers that count, free and governed, on real routing: does what gpu_ext published as not worth
it come out as not worth it?

    python experiments/policy_lead/negative.py ROUTING

ROUTING as for run.py. Writes negative.json and prints the table of README.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from run import HERE, part_of

from uvmsim.studies.compare import compare
from uvmsim.studies.scenario import Scenario

SLOTS = ("25%", "50%", "75%")
POLICIES = (
    "lru", "lru+next-layer", "lru+next-layer:n=8", "lru+next-layer:n=8:window=512MiB",
    "lru+next-layer:n=32", "lru+next-layer:n=32:window=512MiB",
)  # fmt: skip
"""n=32: every expert that was ever seen to follow, as "every positive prefetched" there."""


def measured(trace: Path, slots: str) -> dict[str, dict[str, Any]]:
    """By policy, relative to demand alone (lru): speed, demand bytes, all bytes; bytes prefetched, and
    the share of them that was never used."""
    found: dict[str, dict[str, Any]] = {}
    for policy in POLICIES:
        run = compare(Scenario(trace, slots=slots, policies=policy)).runs[0].to_json()
        issued, ahead = run["prefetch"]["issued"], run["bytes_prefetched"]
        own = {
            "decode_tokens_per_s": run["decode_tokens_per_s"],
            "hit_rate": run["hit_rate"],
            "demand_gb": (run["bytes_h2d"] - ahead) / 1e9,
            "all_gb": run["bytes_h2d"] / 1e9,
            "prefetched_gb": ahead / 1e9,
            "unused": run["prefetch"]["wasted"] / issued if issued else None,
        }
        plain = found.get("lru", own)
        for key in ("decode_tokens_per_s", "demand_gb", "all_gb"):
            own[f"{key}_over_lru"] = own[key] / plain[key]
        found[policy] = own
    return found


def row(of: dict[str, Any]) -> str:
    """A run's columns of the table."""
    keys = ("demand_gb", "all_gb", "decode_tokens_per_s")
    demand, everything, speed = (of[f"{k}_over_lru"] - 1 for k in keys)
    share = f"{of['prefetched_gb']:,.0f} | {of['unused']:.0%}"
    return f"{share} | {demand:+.0%} | {everything:+.0%} | {speed:+.1%}"


def main(routing: Path) -> None:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in ("gpqa_main, test", "mmlu_dev, test"):
            trace = part_of(routing, Path(folder), part)
            for slots in SLOTS:
                found[f"{part} | {slots}"] = measured(trace, slots)
                for policy, of in found[f"{part} | {slots}"].items():
                    if policy == "lru":
                        continue
                    print(f"| {part} | {slots} | {policy[4:]} | {row(of)} |", flush=True)
    (HERE / "negative.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
