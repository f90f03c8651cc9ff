"""The results file as the table of the README.

python experiments/bench/table.py experiments/bench/results.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

POLICIES = ("lru", "fifo", "clock", "sieve", "arc", "s3fifo", "lfu", "belady")


def table(results: dict) -> str:
    """M accesses/s of ours, and in brackets how many times libCacheSim's."""
    rows = {(r["trace"], r["capacity"], r["policy"]): r for r in results["plain_replay"]}
    cells = list(dict.fromkeys((t, c) for t, c, _ in rows))
    lines = ["| trace, capacity | " + " | ".join(POLICIES) + " |", "|---" * 9 + "|"]
    for trace, capacity in cells:
        line = []
        for policy in POLICIES:
            r = rows[trace, capacity, policy]
            line.append(f"{r['uvmsim_m_per_s']['median']:.0f} ({r['ratio']:.1f}x)")
        lines.append(f"| {trace}, {capacity:,} | " + " | ".join(line) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
