"""The break-even line as a terminal table."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from uvmsim.core.units import format_bytes, format_rate
from uvmsim.report.fit import Column, Row, show
from uvmsim.report.progress import wide
from uvmsim.report.table import said
from uvmsim.studies.hybrid_line import TOKENS, HybridLine


def print_hybrid_line(found: HybridLine, console: Console | None = None) -> None:
    """The model's own type by tokens, then one line a type."""
    console = console or wide()
    own, hw = found.lines[0], found.hardware
    size = format_bytes(own.expert_bytes)
    for key, text in (
        ("model", f"{found.model}, an expert {own.kind} {size}"),
        ("hardware", said(hw)),
        ("program", f"{hw.engine.name}"),
    ):
        console.print(Text.assemble((f"{key:<9}", "bold"), text), soft_wrap=True)
    columns = [Column("tokens", "right", name=True)]
    columns += [Column(h, "right", 0) for h in ("CPU us", "link us", "GPU us", "link+GPU us")]
    columns.append(Column("first", "left", 0))
    rows = []
    for p in own.points:
        cells = (p.cpu_ns, p.copy_ns, p.gpu_ns, p.copy_ns + p.gpu_ns)
        first = "CPU" if p.cpu_pays else "link"
        rows.append(
            Row([Text(str(p.tokens)), *(f"{ns / 1e3:,.1f}" for ns in cells), first],
                "bold cyan" if p.cpu_pays else "")
        )  # fmt: skip
    title = Text("one missing expert: computed by the CPU, or copied and computed by the GPU")
    show(console, columns, rows, title=title, title_justify="left", title_style="bold",
         header_style="bold", padding=(0, 1, 0, 0))  # fmt: skip
    columns = [Column("type", "left", name=True)]
    columns += [Column(h, "right", 0) for h in ("expert", "CPU reads", "link", "CPU first up to")]
    rows = []
    for x in found.lines:
        one = x.points[0]
        reads = format_rate(round(x.expert_bytes / max(one.cpu_ns, 1) * 1e9))
        link = format_rate(round(x.expert_bytes / one.copy_ns * 1e9))
        most = f"{x.break_even} tokens" if x.break_even else "never"
        if x.break_even == TOKENS[-1]:
            most = f"all {most}"
        rows.append(Row([Text(x.kind), format_bytes(x.expert_bytes), reads, link, most], ""))
    show(console, columns, rows, title=Text("by type"), title_justify="left", title_style="bold",
         header_style="bold", padding=(0, 1, 0, 0))  # fmt: skip
    for source in dict.fromkeys(f"{x.kind}: {x.source}" for x in found.lines):
        console.print(Text(f"note: CPU, {source}", style="dim"), soft_wrap=True)
