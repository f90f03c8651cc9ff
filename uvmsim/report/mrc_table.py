"""Miss-ratio curves as a terminal table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from uvmsim.report.fit import Column, Row, show, width
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
    if c.decoding is not None:
        console.print(f"{c.decoding}", soft_wrap=True)
    sampled = f", sampled ({c.sample:.0%} of the trace)" if c.sample else ""
    columns = [Column("slots"), Column("share")]
    for pool, curves in c.by_pool.items():
        columns += [Column(f"{curve.policy}\n{pool}") for curve in curves]
    rows = []
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
        rows.append(Row([f"{n:,}", f"{n / total:.2%}", *cells]))
    title = f"Miss ratio by experts resident{sampled}"
    look: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "padding": (0, 1, 0, 0)}
    for some, lines in _blocks(console, columns, rows, look):
        show(console, some, lines, title=title, **look)
    if any("belady" in x.policy for curves in c.by_pool.values() for x in curves):
        console.print(Text("belady is a bound: it sees the future", style="dim"))
    for note in c.notes:
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)


def _blocks(
    console: Console, columns: list[Column], rows: list[Row], look: dict[str, Any]
) -> Iterator[tuple[list[Column], list[Row]]]:
    """The curves beside each other; on a terminal as many at once as it has room for."""
    first, at = 2, 2
    while first < len(columns):
        for at in range(len(columns), first, -1):
            of = [0, 1, *range(first, at)]
            block = [columns[i] for i in of], [Row([r.cells[i] for i in of]) for r in rows]
            if not console.is_terminal or width(console, *block, **look) <= console.width:
                break
        yield block
        first = at
