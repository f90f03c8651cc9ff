"""Replays as a terminal table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from replay.study import Replays
from uvmsim.core.units import format_bytes
from uvmsim.report.fit import Column, Row, show
from uvmsim.report.progress import wide


def print_study(s: Replays, console: Console | None = None) -> None:
    """Machine, table, notes."""
    console = console or wide()
    rows = [r.to_json() for r in s.runs]
    machine = s.runs[0].about["machine"] if s.runs else {}
    t, size = s.to_json()["trace"], format_bytes(max(s.model.expert_bytes))
    tokens = f"{t['prefill_tokens']:,} prefill + {t['decode_tokens']:,} decode tokens"
    shape = f"{t['layers']} MoE layers x {t['experts']} experts, top-{t['top_k']}"
    lines = (
        ("trace", f"{t['path']}: {tokens}"),
        ("model", f"{s.model.name}, {shape}; an expert {size}"),
        ("measured", f"{machine.get('device')}, {s.backend} backend"),
    )
    for key, text in lines:
        console.print(Text.assemble((f"{key:<9}", "bold"), text), soft_wrap=True)
    table: list[Row] = []
    for row in rows:
        name = row["mechanism"] if row["policy"] is None else row["policy"]
        if row["mechanism"] == "managed" and row["policy"]:
            name = f"managed: {name}"
        if row["status"] == "out-of-memory":
            need, have = (format_bytes(row[k], binary=True) for k in ("needed_bytes",
                                                                     "available_bytes"))  # fmt: skip
            console.print(f"{name}: out of memory: {row['what']}: {need} needed, VRAM has {have}")
            continue
        table.append(Row([Text(name), *_cells(row)]))
    if table:
        show(console, COLUMNS, table, header_style="bold", padding=(0, 1, 0, 0))
    for note in dict.fromkeys([*s.notes, *(n for r in rows for n in r["notes"])]):
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)


COLUMNS = (
    Column("policy", "left", name=True),
    Column("slots", leaves=4),
    Column("decode t/s"),
    Column("prefill t/s", leaves=1),
    Column("hit rate", leaves=2),
    Column("GB in", leaves=3),
    Column("GB out", leaves=8),
    Column("waiting", leaves=6),
    Column("p50 ms", leaves=7),
    Column("p99 ms", leaves=5),
    Column("verified", "left"),
)


def _cells(row: dict[str, Any]) -> list[Any]:
    split, latency = row["time_split_s"], row["token_latency_ms"] or {}
    waiting = "-"
    if split and row["time_s"]:
        waiting = f"{(split['transfer'] + split['queueing']) / row['time_s']:.0%}"
    good = Text("yes", style="green") if row["verified"] else Text("NO: void", style="bold red")
    return [
        f"{row['slots']:,}" if row["slots"] else "-",
        _rate(row["decode_tokens_per_s"]),
        _rate(row["prefill_tokens_per_s"]),
        "-" if row["hit_rate"] is None else f"{row['hit_rate']:.1%}",
        f"{row['bytes_h2d'] / 1e9:,.2f}",
        f"{row['bytes_d2h'] / 1e9:,.2f}",
        waiting,
        *(f"{latency[k]:.2f}" if k in latency else "-" for k in ("p50", "p99")),
        good,
    ]


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
