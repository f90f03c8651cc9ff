"""TTFT, TPOT and throughput over the rate of requests, a line a configuration."""

from __future__ import annotations

from typing import Any

from traces.errors import InputError
from uvmsim.report.plots import COLOURS, figure, save
from uvmsim.studies.serve.study import Serving


def draw(s: Serving, path: str) -> None:
    """Three panels over rate, the mean solid and the 99th percentile dashed. Raises `InputError` where
    there are fewer than two rates."""
    runs = [r for r in s.runs if r.bench is not None and r.rate is not None]
    if len({r.rate for r in runs}) < 2:
        raise InputError("needs two rates or more to draw over", argument="plot")
    from matplotlib.ticker import NullLocator

    several = len({r.slots for r in runs}) > 1
    lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for run in runs:
        name = run.name + (f", {run.slots} slots" if several else "")
        lines.setdefault(name, []).append((float(run.rate or 0), run.record or {}))
    good = bool(s.asked.goodput)
    fig, axes = figure(11, 4, ncols=3)
    last = "request_goodput" if good else "output_throughput"
    panels = (
        ("time to first token, ms", ("mean_ttft_ms", "p99_ttft_ms"), True),
        ("time per output token, ms", ("mean_tpot_ms", "p99_tpot_ms"), False),
        ("good requests/s" if good else "output tokens/s", (last,), False),
    )
    for ax, (label, keys, log) in zip(axes, panels, strict=True):
        for i, (name, points) in enumerate(lines.items()):
            x = [rate for rate, _ in points]
            for j, key in enumerate(keys):
                y = [b.get(key) for _, b in points]
                if any(v is None for v in y):
                    continue
                ax.plot(
                    x, y, "o-" if not j else "--", color=COLOURS[i % len(COLOURS)], ms=4,
                    lw=1.8 if not j else 1, label=name if not j else None,
                )  # fmt: skip
        ax.set(xlabel="requests/s", title=label, xscale="log")
        ax.set_xticks(sorted({float(r.rate or 0) for r in runs}))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        if log:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
        else:
            ax.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    save(fig, path)
