"""Miss-ratio curves as a picture."""

from __future__ import annotations

from pathlib import Path

from uvmsim.report.plots import COLOURS, figure, save
from uvmsim.studies.mrc.study import Curves


def draw(c: Curves, path: str) -> None:
    """One line a policy and kind of pool: solid for one pool, dashed for a pool a layer."""
    fig, ax = figure(8, 5)
    w = c.workload
    total = w.n_layers * w.n_experts
    names = list(dict.fromkeys(x.policy for curves in c.by_pool.values() for x in curves))
    for pool, curves in c.by_pool.items():
        style = (0, (4, 2)) if pool == "per-layer" else "-"
        kind = {"global": "one pool", "per-layer": "a pool a layer"}.get(pool, pool)
        for curve in curves:
            colour = COLOURS[names.index(curve.policy) % len(COLOURS)]
            x, y = curve.slots / total * 100, curve.ratio * 100
            label = f"{curve.policy}, {kind}"
            marker = "o" if len(x) < 30 else None
            ax.plot(x, y, linestyle=style, color=colour, label=label, marker=marker, ms=4, lw=1.8)
            if curve.error is not None:
                e = curve.error / curve.accesses * 100
                ax.fill_between(x, y - 2 * e, y + 2 * e, color=colour, alpha=0.15, lw=0)
    lap = w.top_k / w.n_experts * 100
    ax.axvline(lap, color="0.6", lw=1)
    ax.annotate(
        "one token's experts", (lap, 1), xycoords=("data", "axes fraction"), xytext=(4, -2),
        textcoords="offset points", va="top", fontsize=9, color="0.4",
    )  # fmt: skip
    ax.set(
        xlim=(0, 100), ylim=(0, 102), xlabel="experts resident, % of all",
        ylabel="misses, % of accesses",
    )  # fmt: skip
    name = Path(c.trace.path or "trace").name
    ax.set_title(f"{name}: {c.trace.meta.model.name}", loc="left", fontsize=11)
    ax.legend()
    save(fig, path)
