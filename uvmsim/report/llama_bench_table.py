"""llama-bench's table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.text import Text

from uvmsim.core.units import format_bytes
from uvmsim.machine.hardware import Hardware
from uvmsim.report.fit import Column, Row, show
from uvmsim.report.progress import wide
from uvmsim.studies.llamabench.table import LlamaBench

GIB = 2**30
MACHINE = Column("hardware", "left", name=True)
COLUMNS = (
    Column("mechanism", "left", name=True),
    Column("policy", "left", name=True),
    Column("test"),
    Column("t/s"),
    Column("GB in", leaves=1),
    Column("GB out", leaves=2),
    Column("chunks in", leaves=3),
    Column("services/chunk", leaves=4),
)


def print_table(t: LlamaBench, console: Console | None = None) -> None:
    """Head as llama-bench's, then a row a test, with the driver's counters of a repetition."""
    console = console or wide()
    hw = t.hardware
    model = (
        f"{t.model.name}: {t.model.total_bytes / GIB:.2f} GiB, {t.model.total_params / 1e9:.2f} B"
    )
    if t.machines:
        console.print(model, soft_wrap=True)
        for one in t.machines:
            console.print(f"{one.name}: {_said(one)}", soft_wrap=True)
    else:
        console.print(f"{_said(hw)}; {model}", soft_wrap=True)
    if t.options.program:
        console.print(f"{hw.engine.name}: {hw.engine.summary}", soft_wrap=True)
    # A head in two lines would be no Markdown.
    rows = [Row([Text(c) for c in _named(t, row) + _cells(row)]) for row in t.runs]
    columns = (MACHINE, *COLUMNS) if t.machines else COLUMNS
    show(console, columns, rows, break_heads=False, box=MARKDOWN)
    console.print(Text("bytes and chunks are of one repetition", style="dim"))
    for note in t.notes:
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)


def _said(hw: Hardware) -> str:
    kept = hw.reserve_bytes
    less = f" less {format_bytes(kept, binary=True)} reserved" if kept else ""
    return f"{hw.gpu}, {format_bytes(hw.vram_bytes, binary=True)} usable{less}"


def _named(t: LlamaBench, row: dict[str, Any]) -> list[str]:
    return [row["hardware"]] if t.machines else []


def _cells(row: dict[str, Any]) -> list[str]:
    label = row["mechanism"] + (f" {row['ncmoe']}" if "ncmoe" in row else "")
    head = [label, row["policy"] or "", row["test"]]
    if row["status"] != "ok":
        return [*head, "out of memory", "", "", "", ""]
    services = row.get("services_per_chunk")
    chunks = row.get("chunks_in")
    return [
        *head,
        f"{row['tokens_per_s']:.2f} ± {row['sd']:.2f}",
        f"{row['bytes_h2d'] / 1e9:.2f}",
        f"{row['bytes_d2h'] / 1e9:.2f}",
        "" if chunks is None else f"{chunks:,.0f}",
        "" if services is None else f"{services:.2f}",
    ]
