"""KTransformers' and imp's published tables: what was published, what the simulator says, the errors.

python experiments/hybrid_published/run.py

Prints the tables of README.md and writes results.json beside this file (or into ``--out FOLDER``).
Takes some minutes of one core, needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import imp_cache  # noqa: E402
import ktransformers  # noqa: E402

SYNC_NS = 30_000
"""To the CPU and back, the `estimated` engine's estimate."""


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    published = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
    result = {
        "ktransformers": ktransformers.study(published["ktransformers"], SYNC_NS),
        "ktransformers_sync_fitted": ktransformers.study(published["ktransformers"], None),
        "imp": imp_cache.study(published["imp"]),
    }
    for key in ("ktransformers", "ktransformers_sync_fitted"):
        print(placed(result[key]), end="\n\n")
    print(cached(result["imp"]))
    partial = args.out / ".results.json.partial"
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(args.out / "results.json")


def placed(found: dict[str, Any]) -> str:
    """KTransformers' table: published / simulated (error); fitted cells in brackets."""
    lines = ["| on the GPU | random | uniform | frequency | front |", "|---|---|---|---|---|"]
    for share in sorted({c["share"] for c in found["cells"]}):
        of = [c for c in found["cells"] if c["share"] == share]
        lines.append(f"| {share} % | " + " | ".join(_cell(c) for c in of) + " |")
    told = ", ".join(f"{k} {v:,.4g}" for k, v in found["constants"].items())
    off = f"{found['predicted']} predicted cells: mean {found['mean_error']:.1%}, "
    return "\n".join([*lines, "", f"{off}worst {found['worst_error']:.1%}. Constants: {told}."])


def _cell(c: dict[str, Any]) -> str:
    if c["published"] is None:
        return f"{c['simulated']:.1f}"
    text = f"{c['published']:.1f} / {c['simulated']:.1f} ({c['error']:+.1%})"
    return f"[{text}]" if c["fitted"] else text


def cached(found: dict[str, Any]) -> str:
    """imp's table; fitted cells in brackets."""
    lines = [
        "| slots a layer | hits % published | simulated | experts by number | tok/s published "
        "| with the published hits | with the simulated |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        speeds = [_error(r[k], r["tokens_per_s"]) for k in ("with_published_hits", "simulated")]
        if r["speed_fitted"]:
            speeds[0] = f"[{speeds[0]}]"
        hits = [f"{r[k]:.1f}" for k in ("hits", "simulated_hits", "ascending_hits")]
        cells = [str(r["slots"]), *hits, f"{r['tokens_per_s']:.2f}", *speeds]
        lines.append("| " + " | ".join(cells) + " |")
    told = ", ".join(f"{k} {v:,}" for k, v in found["constants"].items())
    routing = ", ".join(f"{k} {v:.3g}" for k, v in found["routing"].items())
    return "\n".join([*lines, "", f"Constants: {told}. Routing: {routing}."])


def _error(got: float, want: float) -> str:
    return f"{got:.2f} ({got / want - 1:+.1%})"


if __name__ == "__main__":
    main()
