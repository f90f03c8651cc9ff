"""Decode speed over pool size by policy: the README's picture.

uvmsim trace import gpqa_main.npz -o gpqa.arrow --model-name gpt-oss-20b
python experiments/policy_curves/draw.py gpqa.arrow experiments/policy_curves/gpt-oss-20b.png
"""

from __future__ import annotations

import sys

from uvmsim.report.plots import COLOURS, figure, save
from uvmsim.studies.compare import compare
from uvmsim.studies.scenario import Scenario

POLICIES = {
    "lru": "lru",
    "lfu": "lfu",
    "layer-lru": "layer-lru",
    "lru+next-layer": "lru + next-layer prefetch",
    "belady": "belady (bound)",
}
SHARES = [6.25, 9, 12.5, 15, 17.5, 20, 25, 30, 37.5, 45, 50, 62.5, 75, 87.5, 100]
HARDWARE = "rtx5090"


def main(trace: str, target: str) -> None:
    """Simulate every policy at every share and draw."""
    options = Scenario(
        trace=trace,
        policies=tuple(POLICIES),
        slots=tuple(f"{s}%" for s in SHARES),
        hardware=HARDWARE,
    )
    result = compare(options)
    total = result.workload.n_layers * result.workload.n_experts
    fig, ax = figure(8.4, 4.6)
    for colour, (policy, label) in zip(COLOURS, POLICIES.items(), strict=False):
        runs = [r.to_json() for r in result.runs if r.policy == policy]
        x = [r["slots"] / total * 100 for r in runs]
        y = [r["decode_tokens_per_s"] for r in runs]
        style = (0, (2, 1.5)) if policy == "belady" else "-"
        ax.plot(x, y, color=colour, label=label, lw=2, ls=style, marker="o", ms=3.5)
    size = result.model.moe_bytes / 1e9
    ax.set(
        xlim=(0, 100),
        ylim=(0, None),
        xlabel=f"experts resident, % of {size:.1f} GB",
        ylabel="decode tokens/s",
    )
    ax.set_title(
        f"{result.model.name} on {result.hardware.name}, "
        f"{result.hardware.h2d_bytes_per_s / 1e9:.1f} GB/s link: the policy decides",
        loc="left",
        fontsize=11,
    )
    ax.legend()
    save(fig, target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
