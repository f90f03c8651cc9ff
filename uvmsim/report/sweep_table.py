"""The rows of a sweep in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from uvmsim.report.fit import Column, Row, show
from uvmsim.report.progress import wide
from uvmsim.studies.sweep.study import Sweep

MOST = 100
"""Rows printed."""


def print_sweep(s: Sweep, console: Console | None = None) -> None:
    """Counts, then a row a cell: the axes that vary, decode speed, hit rate, bytes."""
    console = console or wide()
    d = s.summary
    console.print(
        f"{d.cells:,} cells: {d.ok:,} ok, {d.out_of_memory:,} out of memory, {d.errors:,} errors"
    )
    rows = s.cells.slice(0, MOST).to_pylist()
    names = [_column(name) for name in s.axes]
    columns = [Column(name, "left", name=True) for name in names]
    columns += [Column("decode t/s"), Column("prefill t/s", leaves=1), Column("hit rate", leaves=2)]
    columns += [Column("GB in", leaves=3)]
    shown = [Row([Text(_said(row.get(n))) for n in names] + _measures(row)) for row in rows]
    show(console, columns, shown, header_style="bold", padding=(0, 1, 0, 0))
    if len(s) > MOST:
        console.print(Text(f"  and {len(s) - MOST:,} more; .table() has them", style="dim"))
    if d.first_error:
        console.print(Text(f"first error: {d.first_error}"), soft_wrap=True)


def _column(axis: str) -> str:
    return {"slots": "slots_asked", "vram": "vram_bytes", "link": "link_bytes_per_s",
            "ram_bandwidth": "ram_bytes_per_s", "reserve": "reserve_bytes",
            "expert_size": "expert_bytes"}.get(axis, axis)  # fmt: skip


def _said(value: Any) -> str:
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)


def _measures(row: dict[str, Any]) -> list[Text]:
    if row["status"] != "ok":
        return [Text(row["status"]), Text(""), Text(""), Text("")]
    formats = (("decode_tokens_per_s", "{:,.1f}", 1), ("prefill_tokens_per_s", "{:,.1f}", 1),
               ("hit_rate", "{:.1%}", 1), ("bytes_h2d", "{:,.2f}", 1e9))  # fmt: skip
    return [Text("" if row[k] is None else f.format(row[k] / by)) for k, f, by in formats]
