"""The comparison as a terminal table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from uvmsim.compare import Comparison
from uvmsim.results import Result
from uvmsim.units import format_bytes, format_rate

PARTS = (("compute", "green"), ("cpu", "magenta"), ("transfer", "yellow"), ("queueing", "red"))
BAR = 16


def print_comparison(c: Comparison, console: Console | None = None) -> None:
    """Header, one table a pool size, notes."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=118)
    d = c.to_json()
    _header(console, c, d)
    rows = list(zip(c.runs, d["runs"], strict=True))
    groups: dict[Any, list[tuple[Result, dict]]] = {}
    for run, row in rows:
        key = row.get("slots") if run.mechanism == "expert-cache" else "other"
        groups.setdefault(key, []).append((run, row))
    for key, group in groups.items():
        _table(console, c, key, group)
    for note in dict.fromkeys([*d["notes"], *(n for _, r in rows for n in r.get("notes", []))]):
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)


def _header(console: Console, c: Comparison, d: dict[str, Any]) -> None:
    t, m, hw = d["trace"], d["model"], c.hardware
    phases = f"{t['prefill_tokens']:,} prefill + {t['decode_tokens']:,} decode"
    sequences = f", {t['sequences']:,} sequences" if t["sequences"] > 1 else ""
    incomplete = "" if t["complete"] else " [incomplete recording]"
    lines = (
        ("trace", f"{t['path']}: {phases} tokens{sequences}{incomplete}"),
        ("model", f"{m['name']}, {t['layers']} MoE layers x {t['experts']} experts, top-{t['top_k']}; "
         f"an expert {format_bytes(m['expert_bytes'])}, all {format_bytes(m['total_bytes'])}"),
        ("hardware", f"{hw.gpu}, {format_bytes(hw.vram_bytes, binary=True)}, "
         f"link {format_rate(hw.h2d_bytes_per_s)}"),
    )  # fmt: skip
    for key, text in lines:
        console.print(Text.assemble((f"{key:<9}", "bold"), text), soft_wrap=True)


def _table(console: Console, c: Comparison, key: Any, group: list[tuple[Result, dict]]) -> None:
    total = c.workload.n_layers * c.workload.n_experts
    decode = any(r.get("decode_tokens") for _, r in group)
    main = "decode_tokens_per_s" if decode else "tokens_per_s"
    if isinstance(key, int):
        size = format_bytes(key * max(c.model.expert_bytes))
        pool = "one pool" if c.options.pool == "global" else "a pool a layer"
        title = f"{key:,} of {total:,} experts resident ({key / total:.1%}, {size}), {pool}"
    else:
        title = "without an expert pool"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("policy" if isinstance(key, int) else "mechanism", no_wrap=True)
    table.add_column("decode t/s" if decode else "tokens/s", justify="right")
    if decode and any(r.get("prefill_tokens") for _, r in group):
        table.add_column("prefill t/s", justify="right")
    for name in ("hit rate", "GB in", "GB out", "misses vs Belady"):
        table.add_column(name, justify="right")
    table.add_column("time: " + " ".join(f"[{s}]{p}[/]" for p, s in PARTS), no_wrap=True)
    table.add_column("prefetch used/late/wasted", justify="right")
    best = _best(group, main)
    for run, row in group:
        name = run.policy if run.mechanism == "expert-cache" else run.mechanism
        bound = bool(run.job.policy and "next_use" in run.job.policy.needs)
        if row["status"] != "ok":
            need = format_bytes(row["needed_bytes"])
            have = format_bytes(row["available_bytes"])
            table.add_row(name, Text(f"out of memory: needs {need}, has {have}", style="red"))
            continue
        style = "bold cyan" if row is best else ("dim" if bound else "")
        mark = " *" if row is best else (" (bound)" if bound else "")
        table.add_row(*_cells(f"{name}{mark}", row, main, len(table.columns)), style=style)
    console.print(table)


def _cells(name: str, row: dict[str, Any], main: str, columns: int) -> list[Any]:
    over = row.get("misses_over_belady")
    p = row["prefetch"]
    cells: list[Any] = [name, _rate(row[main])]
    if columns == 9:
        cells.append(_rate(row["prefill_tokens_per_s"]))
    used = "-"
    if p["issued"]:
        used = "/".join(f"{p[k] / p['issued']:.0%}" for k in ("useful", "late", "wasted"))
    return [
        *cells,
        f"{row['hit_rate']:.1%}" if row["hit_rate"] is not None else "-",
        f"{row['bytes_h2d'] / 1e9:.2f}",
        f"{row['bytes_d2h'] / 1e9:.2f}" if row["bytes_d2h"] else "-",
        f"{over:.2f}x" if over else "-",
        _bar(row["time_split_s"]),
        used,
    ]


def _best(group: list[tuple[Result, dict]], main: str) -> dict[str, Any] | None:
    """The fastest run that does not look into the future."""
    real = [
        row
        for run, row in group
        if row["status"] == "ok" and not (run.job.policy and "next_use" in run.job.policy.needs)
    ]
    return max(real, key=lambda r: r[main] or 0.0, default=None) if len(real) > 1 else None


def _bar(split: dict[str, float]) -> Text:
    total = sum(split.values()) or 1.0
    text = Text()
    edge = 0.0
    drawn = 0
    for part, style in PARTS:
        edge += split[part] / total
        upto = round(edge * BAR)
        text.append("█" * (upto - drawn), style=style)
        drawn = upto
    waiting = 1 - split["compute"] / total
    text.append(f" {waiting:>4.0%} wait", style="default")
    return text


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
