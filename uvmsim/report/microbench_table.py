"""The microbenchmarks' table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from uvmsim.core.units import format_bytes
from uvmsim.report.progress import wide
from uvmsim.studies.microbench.table import Table


def print_table(t: Table, console: Console | None = None) -> None:
    """A row a ratio and policy; with several processes one more for each."""
    console = console or wide()
    hw, o = t.hardware, t.options
    console.print(
        f"{o.pattern} on {hw.gpu}, {format_bytes(hw.vram_bytes, binary=True)}", soft_wrap=True
    )
    table = RichTable(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("ratio", justify="right")
    table.add_column("policy", overflow="fold", min_width=20)
    names = ("total ms", "median pass ms", "chunks in", "evictions", "services/chunk", "GB in")
    for name in (*names, "GB out"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in t.rows:
        table.add_row(f"{row['ratio']:g}x", row["policy"], *_cells(row))
        for one in row.get("tenants", ()):
            table.add_row("", f"  process {one['tenant']}", *_cells(one), style="dim")
    console.print(table)
    for note in dict.fromkeys([*t.notes, *(n for r in t.rows for n in r["notes"])]):
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)


def _cells(row: dict[str, Any]) -> list[str]:
    services = row["services_per_chunk"]
    return [
        f"{row['total_ms']:,.3f}",
        f"{row['median_pass_ms']:,.3f}",
        f"{row['chunks_in']:,}",
        f"{row['evictions']:,}",
        "" if services is None else f"{services:.2f}",
        f"{row['bytes_h2d'] / 1e9:.2f}",
        f"{row['bytes_d2h'] / 1e9:.2f}",
    ]
