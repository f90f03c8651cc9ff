"""`uvmsim bpf` on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from uvmsim.report.progress import wide
from uvmsim.studies.decisions.info import Info
from uvmsim.studies.decisions.parting import Parting

NEAREST = 3


def print_info(info: Info) -> None:
    """Programs, maps, variables, calls, fields, resemblance."""
    console = wide()
    console.print(f"{info.path}: {info.operations or 'no structure of operations'}, {info.license}")
    _rows(console, ("program", "section", "instructions", "called for"), [
        (p["name"], p["section"], f"{p['instructions']:,}", p["called"] or "never")
        for p in info.programs
    ])  # fmt: skip
    _rows(console, ("map", "type", "key B", "value B", "entries"), [
        (m["name"], m["type"], str(m["key"]), str(m["value"]), f"{m['entries']:,}")
        for m in info.maps
    ])  # fmt: skip
    _rows(console, ("variable", "section", "bytes"), [
        (v["name"], v["section"], str(v["bytes"])) for v in info.variables
    ])  # fmt: skip
    _rows(console, ("calls", "places"), [(k, str(n)) for k, n in info.helpers.items()])
    _rows(console, ("reads", "in the model"), [
        (k, "yes" if known else "no: 0") for k, known in info.fields.items()
    ])  # fmt: skip
    _rows(console, ("resembles", "same answers"), [
        (r["policy"], f"{100 * r['share']:.2f} %") for r in info.resembles[:NEAREST]
    ])  # fmt: skip


def print_parting(p: Parting) -> None:
    """How many answers are equal, and the first that is not."""
    console = wide()
    rows = [
        (kind, f"{n:,}", f"{p.equal[kind]:,}", f"{100 * p.equal[kind] / n:.2f} %" if n else "-")
        for kind, n in p.questions.items()
    ]
    _rows(console, ("question", "asked", "same answer", "share"), rows)
    if p.first is None:
        console.print(f"{p.names[0]} and {p.names[1]} never part")
        return
    first = p.first
    page = f", page {first['page']}" if first["kind"] == "fault" else ""
    place = f"{first['kind']}, block {first['block']}{page}"
    console.print(f"they part at event {first['event']:,}: {place}")
    for name, answer in zip(p.names, first["answers"], strict=True):
        console.print(f"  {name}: {answer}")


def _rows(console: Any, titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    table = Table(box=SIMPLE_HEAD)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
