"""Predicted against measured tokens/s, one point a cell."""

from __future__ import annotations

from typing import Any

from replay.validate.report import headline
from replay.validate.score import main_speed
from uvmsim.report.plots import COLOURS, figure, save

MARKS = "osD^vP*X"


def draw(report: dict[str, Any], path: str) -> None:
    """A PNG or SVG: left all cells on the diagonal (band: 5 %), right the error of each."""
    rows = [r for r in report["rows"] if r.get("error") is not None]
    fig, (left, right) = figure(12, 5.2, ncols=2, width_ratios=(1, 1.15))
    policies = list(dict.fromkeys(r["policy"] or r["mode"] for r in rows))
    groups = list(dict.fromkeys((r["trace"], r["size"] or r["mode"]) for r in rows))
    for i, name in enumerate(policies):
        mine = [r for r in rows if (r["policy"] or r["mode"]) == name]
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}
        p, m = ([main_speed(r[k]) for r in mine] for k in ("predicted", "measured"))
        left.scatter(m, p, s=38, alpha=0.85, linewidths=0, label=name, **style)
        at = [groups.index((r["trace"], r["size"] or r["mode"])) for r in mine]
        shift = (i - (len(policies) - 1) / 2) * 0.11
        right.scatter(
            [x + shift for x in at], [100 * r["error"] for r in mine], s=30, linewidths=0, **style
        )
    if rows:
        values = [main_speed(r[k]) or 0.0 for r in rows for k in ("predicted", "measured")]
        low, high = min(values) / 1.15, max(values) * 1.15
        left.plot([low, high], [low, high], color="0.4", lw=1, zorder=0)
        left.fill_between(
            [low, high], [0.95 * low, 0.95 * high], [1.05 * low, 1.05 * high],
            color="0.88", zorder=-1, lw=0,
        )  # fmt: skip
        left.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        left.legend(fontsize=9)
    left.set(xlabel="measured tokens/s", ylabel="predicted tokens/s", aspect="equal")
    right.axhline(0, color="0.4", lw=1)
    right.axhspan(-5, 5, color="0.92", zorder=-1)
    right.set_xticks(
        range(len(groups)), [f"{t}\n{s}" for t, s in groups], rotation=40, ha="right", fontsize=8
    )
    right.set(ylabel="error of tokens/s, % (band: 5 %)")
    fig.suptitle(f"{report['hardware']['gpu']}\n{headline(report)}", fontsize=10)
    save(fig, path)
