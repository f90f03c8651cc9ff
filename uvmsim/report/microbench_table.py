"""The microbenchmarks' table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from uvmsim.core.units import format_bytes
from uvmsim.report.fit import Column, Row, show
from uvmsim.report.progress import wide
from uvmsim.studies.microbench.table import Microbench

COLUMNS = (
    Column("ratio"),
    Column("policy", "left", name=True),
    Column("total ms"),
    Column("median pass ms", leaves=1),
    Column("chunks in", leaves=2),
    Column("evictions", leaves=4),
    Column("services/chunk", leaves=6),
    Column("GB in", leaves=3),
    Column("GB out", leaves=5),
)


def print_table(t: Microbench, console: Console | None = None) -> None:
    """A row a ratio and policy; with several processes one more for each."""
    console = console or wide()
    hw, o = t.hardware, t.options
    console.print(
        f"{o.pattern} on {hw.gpu}, {format_bytes(hw.vram_bytes, binary=True)}", soft_wrap=True
    )
    rows = []
    for row in t.runs:
        rows.append(Row([f"{row['ratio']:g}x", Text(row["policy"]), *_cells(row)]))
        for one in row.get("tenants", ()):
            rows.append(Row(["", f"  process {one['tenant']}", *_cells(one)], "dim"))
    show(console, COLUMNS, rows, header_style="bold")
    for note in dict.fromkeys([*t.notes, *(n for r in t.runs for n in r["notes"])]):
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
