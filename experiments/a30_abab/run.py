"""The A-B-A-B scan on an A30: published and simulated, row by row.

python experiments/a30_abab/run.py

Prints the table of README.md and writes results.json beside this file (or into ``--out FOLDER``).
Takes under a minute, needs no GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from uvmsim.studies.microbench.table import Options, run

HERE = Path(__file__).resolve().parent
VRAM = "8GiB"
"""4,096 chunks: the study's effective capacity of 8,589,344,768 bytes."""
PUBLISHED: tuple[tuple[str, float, float, int], ...] = (
    ("default", 0.95, 2692.0, 0),
    ("prefetch_none", 0.95, 34789.0, 0),
    ("prefetch_always_max", 0.95, 957.6, 0),
    ("prefetch_adaptive_sequential", 0.95, 1590.0, 0),
    ("default", 1.05, 6573.0, 4726),
    ("prefetch_none", 1.05, 71070.0, 4742),
    ("prefetch_always_max", 1.05, 2673.0, 4711),
    ("prefetch_adaptive_sequential", 1.05, 3677.0, 4743),
    ("prefetch_always_max_cycle_moe", 1.05, 2675.0, 4710),
)
"""Policy, ratio, total ms, evictions (crupest/gpu_ext, controlled validation; medians of 3 runs)."""
FITTED = {(p, 0.95) for p in ("default", "prefetch_none", "prefetch_always_max")} | {
    ("prefetch_always_max", 1.05)
}
ADAPTIVE = "prefetch_adaptive_sequential"
LEAST, SPAN, FULL_MB = 30, 70, 20480
"""The policy's loader: 30 % of a block without PCIe traffic, 100 % at 20,480 MB/s."""


def row(policy: str, ratio: float) -> dict[str, Any]:
    """One simulated row."""
    options = Options(
        pattern="abab", ratios=(ratio,), hardware="a30", policies=(policy,), vram=VRAM
    )
    return run(options).runs[0]


def adaptive(ratio: float) -> dict[str, Any]:
    """The share of a block that the loader sets follows from the traffic, which follows from the
    share: from a link at rest, step by step until it stays the same."""
    percent = LEAST
    for _ in range(8):
        got = row(f"{ADAPTIVE}:percent={percent}", ratio)
        rate = (got["bytes_h2d"] + got["bytes_d2h"]) / got["total_ms"] / 1e3
        again = LEAST + round(SPAN * min(rate / FULL_MB, 1.0))
        if again == percent:
            break
        percent = again
    return got


def study() -> list[dict[str, Any]]:
    """All rows."""
    rows = []
    for policy, ratio, ms, evictions in PUBLISHED:
        got = adaptive(ratio) if policy == ADAPTIVE else row(policy, ratio)
        rows.append(
            {
                "policy": got["policy"],
                "ratio": ratio,
                "published_ms": ms,
                "simulated_ms": round(got["total_ms"], 1),
                "error": round(got["total_ms"] / ms - 1, 4),
                "source": "fitted on" if (policy, ratio) in FITTED else "predicted",
                "published_evictions": evictions,
                "simulated_evictions": got["evictions"],
                "blocks": got["blocks"],
                "chunks": got["chunks"],
                "services_per_chunk": round(got["services_per_chunk"], 2),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    out = [
        "| policy | ratio | published ms | simulated ms | error | | evictions published | simulated |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        out.append(
            f"| {r['policy']} | {r['ratio']:.2f}x | {r['published_ms']:,.0f} | "
            f"{r['simulated_ms']:,.0f} | {r['error']:+.1%} | {r['source']} | "
            f"{r['published_evictions']:,} | {r['simulated_evictions']:,} |"
        )
    return "\n".join(out)


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results.json")
    args = parser.parse_args()
    rows = study()
    print(table(rows))
    target = args.out / "results.json"
    partial = target.with_name(".results.json.partial")
    partial.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    partial.replace(target)


if __name__ == "__main__":
    main()
