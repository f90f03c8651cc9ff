"""What becomes of misses, simulated: inserted, offered to the pool, shared with the CPU.

    python experiments/policy_lead/misses.py ROUTING

ROUTING as for run.py, whose test parts of gpt-oss-20b are taken. Writes misses.json and prints the
table of README.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from run import HERE, PARTS, SLOTS, part_of, uvmsim

POLICIES = ("lru", "lrfu", "learned", "belady")
WAYS = {
    "insert": ("expert-cache", ""),
    "bypass": ("expert-cache", ":bypass=1"),
    "hybrid": ("hybrid", ""),
    "hybrid, bypass": ("hybrid", ":bypass=1"),
}
"""Mechanism, and what is added to a policy's name."""
POOLS = ("global", "per-layer")


def measured(trace: Path) -> list[dict[str, Any]]:
    """One row a pool kind, way, size and policy."""
    rows = []
    for pool in POOLS:
        for way, (mechanism, more) in WAYS.items():
            names = [p + more for p in POLICIES]
            out = uvmsim(
                "compare", str(trace), "--json", "--slots", ",".join(SLOTS), "--pool", pool,
                "--mechanism", mechanism, "--policy", ",".join(names), "--no-behind",
            )  # fmt: skip
            runs = json.loads(out)["runs"]
            sizes = sorted({r["slots"] for r in runs})
            for r in runs:
                rows.append({
                    "pool": pool, "way": way, "policy": r["policy"].partition(":")[0],
                    "size": SLOTS[sizes.index(r["slots"])], "slots": r["slots"],
                    "hit_rate": r["hit_rate"], "decode_tokens_per_s": r["decode_tokens_per_s"],
                    "bytes_h2d": r["bytes_h2d"], "misses_by": r.get("misses_by"),
                    "time_split_s": r["time_split_s"],
                })  # fmt: skip
    return rows


def show(part: str, rows: list[dict[str, Any]]) -> None:
    """Rows of the table: pool, policy and way; hits, tokens/s and GB by size."""
    for pool in POOLS:
        for policy in POLICIES:
            for way in WAYS:
                cells = []
                for size in SLOTS:
                    (r,) = [
                        x for x in rows
                        if (x["pool"], x["policy"], x["way"], x["size"]) == (pool, policy, way, size)
                    ]  # fmt: skip
                    by = r["misses_by"] or {}
                    cpu = by.get("cpu", 0) + by.get("cpu-behind", 0)
                    share = f", {cpu / sum(by.values()):.0%} CPU" if cpu else ""
                    cells.append(f"{r['hit_rate']:.1%}, {r['decode_tokens_per_s']:.1f} t/s{share}")
                print(f"| {part} | {pool} | {policy} | {way} | {' | '.join(cells)} |", flush=True)


def main(routing: Path) -> None:
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part in [p for p in PARTS if p.endswith("test")]:
            trace = part_of(routing, work, part)
            results[part] = measured(trace)
            show(part, results[part])
            (HERE / "misses.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
