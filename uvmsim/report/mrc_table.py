"""Miss-ratio curves as a terminal table."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from uvmsim.report.progress import wide
from uvmsim.studies.mrc.study import Curves, at


def print_curves(c: Curves, console: Console | None = None) -> None:
    """One row a size, one column a policy and kind of pool."""
    console = console or wide()
    t, w = c.trace, c.workload
    total = w.n_layers * w.n_experts
    shape = f"{w.n_layers} MoE layers x {w.n_experts} experts, top-{w.top_k}"
    name = Path(t.path or "trace").name
    console.print(f"{name}: {shape}; {len(w.ids):,} accesses", soft_wrap=True)
    sampled = f", sampled ({c.options.sample:.0%} of the trace)" if c.options.sample else ""
    table = Table(
        title=f"Miss ratio by experts resident{sampled}", title_justify="left", title_style="bold",
        box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("slots", justify="right")
    table.add_column("share", justify="right")
    for pool, curves in c.by_pool.items():
        for curve in curves:
            table.add_column(f"{curve.policy}\n{pool}", justify="right")
    for n in c.sizes:
        cells = []
        for pool, curves in c.by_pool.items():
            each = 1 if pool == "global" else w.n_layers
            for curve in curves:
                value = at(curve, n, each)
                text = "-" if value is None else f"{value:.2%}"
                if curve.error is not None and value is not None:
                    i = int((curve.slots == n // each * each).argmax())
                    text += f" ± {curve.error[i] / curve.accesses:.2%}"
                cells.append(text)
        table.add_row(f"{n:,}", f"{n / total:.2%}", *cells)
    console.print(table)
    if any("belady" in x.policy for curves in c.by_pool.values() for x in curves):
        console.print(Text("belady is a bound: it sees the future", style="dim"))
