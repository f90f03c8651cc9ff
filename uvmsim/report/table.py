"""The comparison as a terminal table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from uvmsim.core.units import format_bytes, format_rate
from uvmsim.machine.hardware import Hardware
from uvmsim.mechanisms.gates import peer_of
from uvmsim.paging.layout import BLOCK
from uvmsim.report.fit import Column, Row, show
from uvmsim.report.progress import wide
from uvmsim.report.tenants import print_tenants
from uvmsim.runs.outcome import Outcome
from uvmsim.studies.compare import Comparison

PARTS = (
    ("compute", "\u2588", "green"),
    ("cpu", "\u2593", "magenta"),
    ("disk", "\u259e", "blue"),
    ("transfer", "\u2592", "yellow"),
    ("queueing", "\u2591", "red"),
    ("paging", "\u259a", "yellow"),
    ("peer", "\u2584", "blue"),
)
"""What the time bar shows: shades, so that it reads without colours too."""
BAR = 16
NO_PREFETCH = {"issued": 0}


def print_comparison(c: Comparison, console: Console | None = None) -> None:
    """Header, one table a pool size, notes."""
    console = console or wide()
    d = c.to_json()
    _header(console, c, d)
    rows = list(zip(c.runs, d["runs"], strict=True))
    groups: dict[Any, list[tuple[Outcome, dict]]] = {}
    for run, row in rows:
        pool = row.get("slots") if run.pooled else "other"
        key = "paged" if "chunks" in row else pool
        groups.setdefault(key, []).append((run, row))
    heads: set[str] = set()
    for key, group in groups.items():
        heads |= _table(console, c, key, group)
    if not any(_ok(r) for _, r in rows):
        return
    print_tenants(console, rows)
    drawn = {part for _, r in rows if _ok(r) for part in r["time_split_s"]}
    legend = [
        Text.assemble((glyph, style), f" {part}") for part, glyph, style in PARTS if part in drawn
    ]
    if "time" in heads:
        console.print(Text("  time: ", style="dim") + Text("  ").join(legend))
    shown = [r for _, r in rows]
    if "x Belady" in heads and any("misses_over_belady" in r for r in shown):
        console.print(
            Text("  x Belady: misses over the fewest possible without prefetch", style="dim")
        )
    if "each t/s" in heads and _batches(c):
        console.print(Text("  each: of one sequence while it is decoded", style="dim"))
    if "tokens/step" in heads and any(r.get("rejected_tokens") for r in shown):
        console.print(Text("  tokens: accepted ones; rejected drafts are no tokens", style="dim"))
    if "over cold" in heads and any("over_cold" in r for r in shown):
        console.print(Text("  over cold: hits and tokens/s more than from nothing", style="dim"))
    prefetched = any(_ok(r) and r.get("prefetch", NO_PREFETCH)["issued"] for r in shown)
    if "ok/late/lost" in heads and prefetched:
        console.print(Text("  ok/late/lost: prefetches in time, late, never used", style="dim"))
    for note in dict.fromkeys([*d["notes"], *(n for _, r in rows for n in r.get("notes", []))]):
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)


def _header(console: Console, c: Comparison, d: dict[str, Any]) -> None:
    t, m, hw = d["trace"], d["model"], c.hardware
    phases = f"{t['prefill_tokens']:,} prefill + {t['decode_tokens']:,} decode"
    sequences = f", {t['sequences']:,} sequences" if t["sequences"] > 1 else ""
    incomplete = "" if t["complete"] else " [incomplete recording]"
    lines = [
        ("trace", f"{t['path']}: {phases} tokens{sequences}{incomplete}"),
        ("model", f"{m['name']}, {t['layers']} MoE layers x {t['experts']} experts, top-{t['top_k']}; "
         f"an expert {format_bytes(m['expert_bytes'])}, all {format_bytes(m['total_bytes'])}"),
        *(("hardware", (f"{x.name}: " if c.machines else "") + said(x)) for x in c.machines or [hw]),
    ]  # fmt: skip
    decodings = list(dict.fromkeys(run.job.decoding for run in c.runs))
    if len(decodings) == 1 and decodings[0] is not None:
        lines.append(("decoding", str(decodings[0])))
    tier = c.runs[0].job.tier if c.runs else None
    if tier is not None:
        ram = format_bytes(tier.ram_bytes, binary=True)
        rows = [r["ram"] for r in d["runs"] if _ok(r)]
        holds = f" ({rows[0]['slots']:,} experts)" if rows and rows[0]["slots"] else ""
        policy = f", {rows[0]['policy']}" if rows else ""
        lines.append(("tiers", f"{ram} of host memory{holds}{policy}, above {tier.said()}"))
    if (c.scenario.gpus or 1) > 1:
        shared = ", one host link for all" if c.scenario.shared_link else ""
        lines.append(("gpus", f"{c.scenario.gpus}, {peer_of(c.runs[0].job)}{shared}"))
    if c.scenario.program:
        lines.append(("program", f"{hw.engine.name}, {hw.engine.summary}"))
    for key, text in lines:
        console.print(Text.assemble((f"{key:<8} ", "bold"), text), soft_wrap=True)


def said(hw: Hardware) -> str:
    """A machine in a line."""
    kept = hw.reserve_bytes
    less = f" less {format_bytes(kept, binary=True)} reserved" if kept else ""
    return (
        f"{hw.gpu}, {format_bytes(hw.vram_bytes, binary=True)}{less}, "
        f"link {format_rate(hw.h2d_bytes_per_s)}"
    )


def _table(
    console: Console, c: Comparison, key: Any, group: list[tuple[Outcome, dict]]
) -> set[str]:
    """One size's table; returns the heads that the terminal had room for."""
    total = c.workload.n_layers * c.workload.n_experts
    decode = any(r.get("decode_tokens") for _, r in group)
    main = "decode_tokens_per_s" if decode else "prefill_tokens_per_s"
    if isinstance(key, int):
        size = format_bytes(key * max(c.model.expert_bytes))
        pool = "one pool" if c.scenario.pool == "global" else "a pool a layer"
        tenants = group[0][0].job.tenants
        if tenants and tenants.budget:
            pool = " + ".join(f"{b:.0%}" for b in tenants.budget)
        title = f"{key:,} of {total:,} experts resident ({key / total:.1%}, {size}), "
        title += _on_gpus(c, group) or pool
    elif key == "paged":
        chunks, threshold = c.hardware.free_bytes // BLOCK, c.scenario.threshold
        many = "" if c.machines else f"{chunks:,} "
        title = f"paged by the driver, {many}chunks of 2 MiB, threshold {threshold} %"
    else:
        title = "without an expert pool"
    best = _best(group, main)
    columns = [x for x in COLUMNS if any(x[1](run, row, c) for run, row in group if _ok(row))]
    named = isinstance(key, int) or key == "paged"
    shown = [Column(head, "left") for head in ways(c)]
    shown += [Column("hardware", "left", name=True)] if c.machines else []
    shown += [Column("policy" if named else "mechanism", "left", name=True)]
    for name, _ in columns:
        stays = name == ("decode t/s" if decode else "prefill t/s")
        leaves = 0 if stays else 1 + LEAVING.index(name)
        shown.append(Column(name, "left" if name == "time" else "right", leaves))
    several = len({run.mechanism for run, _ in group}) > 1
    lines: list[Row] = []
    told: set[tuple[str, ...]] = set()
    for run, row in group:
        name = (run.policy if named else None) or run.mechanism
        if named and several:
            name = f"{run.mechanism} {name}"
        if "ncmoe" in row:
            name = f"{name} {row['ncmoe']}"
        where = [str(row[head]) for head in ways(c)]
        where += [run.job.hardware.name] if c.machines else []
        bound = bool(run.job.policy and "next_use" in run.job.policy.needs)
        if not _ok(row):
            need = format_bytes(row["needed_bytes"], binary=True)
            have = format_bytes(row["available_bytes"], binary=True)
            why = Text(f"out of memory: {row['what']}: {need} needed, VRAM has {have}", style="red")
            if (*where, why.plain) not in told:
                told.add((*where, why.plain))
                failed = " on ".join([name if "ncmoe" in row else run.mechanism, *where])
                console.print(Text.assemble(f"{failed}: ", why), soft_wrap=True)
            continue
        style = "bold cyan" if row is best else ("dim" if bound else "")
        mark = "> " if row is best else "  "
        cells = [make(run, row, c) or "-" for _, make in columns]
        first, *rest = [*where, f"{name}{' (bound)' if bound else ''}"]
        lines.append(Row([Text(f"{mark}{first}"), *map(Text, rest), *cells], style))
    if not lines:
        return set()
    left = show(
        console, shown, lines, title=Text(title), title_justify="left", title_style="bold",
        header_style="bold", padding=(0, 1, 0, 0),
    )  # fmt: skip
    return {column.head for column in shown} - set(left)


def ways(c: Comparison) -> list[str]:
    """``batch`` and ``draft``, those of which a comparison has several."""
    told = [run.job.decoding for run in c.runs if run.job.decoding is not None]
    several = {"batch": len({d.batch for d in told}), "draft": len({d.draft for d in told})}
    return [head for head, values in several.items() if values > 1]


def _on_gpus(c: Comparison, group: list[tuple[Outcome, dict]]) -> str:
    """How several GPUs share a size's experts."""
    rows = [row for _, row in group if _ok(row) and "gpus" in row]
    if not rows:
        return ""
    n, each, split = c.scenario.gpus, [d["slots"] for d in rows[0]["gpus"]], rows[0]["split"]
    if split == "pool":
        return f"on the first of {n} GPUs, the others behind it"
    same = f"{each[0]:,} on each" if len(set(each)) == 1 else "+".join(f"{x:,}" for x in each)
    return f"{n} GPUs by {split}: {same}"


def _ok(row: dict[str, Any]) -> bool:
    return row["status"] == "ok"


Cell = Callable[[Outcome, dict[str, Any], Comparison], Any]
COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("decode t/s", lambda run, r, c: _rate(r["decode_tokens_per_s"])),
    ("each t/s", lambda run, r, c: _rate(r["sequence_tokens_per_s"]) if _batches(c) else ""),
    ("tokens/step", lambda run, r, c: _plain(r.get("tokens_per_step"))),
    ("experts/layer", lambda run, r, c: _plain(r.get("experts_per_layer"))),
    ("prefill t/s", lambda run, r, c: _rate(r["prefill_tokens_per_s"])),
    ("hit rate", lambda run, r, c: _percent(r.get("hit_rate"))),
    ("over cold", lambda run, r, c: _gain(r.get("over_cold"))),
    ("GB in", lambda run, r, c: _gigabytes(r["bytes_h2d"])),
    ("GB out", lambda run, r, c: _gigabytes(r["bytes_d2h"])),
    ("GB peer", lambda run, r, c: _gigabytes(r.get("bytes_peer", 0))),
    ("chunks in", lambda run, r, c: f"{r['chunks_in']:,}" if "chunks_in" in r else ""),
    ("services/chunk", lambda run, r, c: _plain(r.get("services_per_chunk"))),
    ("RAM hits", lambda run, r, c: _percent(r.get("ram", {}).get("hit_rate"))),
    ("GB read", lambda run, r, c: _gigabytes(r.get("ram", {}).get("disk_bytes", 0))),
    ("x Belady", lambda run, r, c: _times(r.get("misses_over_belady"))),
    ("time", lambda run, r, c: _bar(r["time_split_s"])),
    ("ok/late/lost", lambda run, r, c: _prefetch(r.get("prefetch", NO_PREFETCH))),
)
"""Heading and what stands under it; a column that would be empty is left out."""
LEAVING = (
    "decode t/s", "each t/s", "prefill t/s", "hit rate", "RAM hits", "GB read", "tokens/step",
    "experts/layer", "over cold", "GB in", "x Belady", "chunks in", "GB out", "GB peer",
    "ok/late/lost", "services/chunk", "time",
)  # fmt: skip
"""What a narrow terminal has room for to the last; the speed that counts always stays."""


def _best(group: list[tuple[Outcome, dict]], main: str) -> dict[str, Any] | None:
    """The fastest run that does not look into the future."""
    real = [
        row
        for run, row in group
        if row["status"] == "ok" and not (run.job.policy and "next_use" in run.job.policy.needs)
    ]
    if len({r[main] for r in real}) < 2:
        return None  # one run, or all alike: nothing stands out
    return max(real, key=lambda r: r[main] or 0.0)


def _batches(c: Comparison) -> bool:
    return any(run.job.decoding is not None and run.job.decoding.batch > 1 for run in c.runs)


def _bar(split: dict[str, float]) -> Text:
    total = sum(split.values()) or 1.0
    text = Text()
    edge, drawn = 0.0, 0
    for part, glyph, style in PARTS:
        edge += split.get(part, 0.0) / total
        upto = round(edge * BAR)
        text.append(glyph * (upto - drawn), style=style)
        drawn = upto
    return text


def _prefetch(p: dict[str, int]) -> str:
    if not p["issued"]:
        return ""
    return "/".join(f"{p[k] / p['issued']:.0%}" for k in ("useful", "late", "wasted"))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _gain(more: dict[str, float] | None) -> str:
    """Points of hit rate and tokens a second more than from nothing."""
    if not more:
        return ""
    rate = more.get("decode_tokens_per_s", more.get("prefill_tokens_per_s", 0.0))
    return f"{100 * more['hit_rate']:+.1f} %, {rate:+.1f} t/s"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _gigabytes(n: int) -> str:
    return f"{n / 1e9:,.2f}" if n else ""


def _rate(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
