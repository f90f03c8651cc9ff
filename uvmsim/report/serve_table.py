"""A serving study in the terminal: vLLM's lines where there is one run, a table where there are
several."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from uvmsim.core.units import format_bytes
from uvmsim.report.fit import Column, Row, show
from uvmsim.report.progress import wide
from uvmsim.report.table import said
from uvmsim.serving.result import WIDTH
from uvmsim.studies.serve.items import Service
from uvmsim.studies.serve.study import Serving


def print_serving(s: Serving, console: Console | None = None) -> None:
    """Head, lines or a table, notes."""
    console = console or wide()
    _head(console, s)
    if len(s.runs) == 1 and s.runs[0].bench is not None:
        console.print(Text(s.runs[0].bench.text() + "\n" + paging_lines(s.runs[0])), soft_wrap=True)
    else:
        _table(console, s)
        if len(s.asked.rates) > 1:
            _knees(console, s)
    for note in dict.fromkeys(s.notes):
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)


def paging_lines(run: Service) -> str:
    """What vLLM's client cannot see, in its layout."""
    d = run.to_json()
    rows: list[tuple[str, Any]] = [("GB moved per request:", d["bytes_moved_per_request"] / 1e9)]
    if d["stall_s_per_request"] is not None:
        rows.append(("Waited for experts per request (s):", d["stall_s_per_request"]))
    for name, phase in d["phases"].items():
        if phase["hit_rate"] is not None:
            rows.append((f"Hit rate, {name} (%):", phase["hit_rate"] * 100))
        if phase["busy_s"]:
            rows.append((f"Tokens/s while busy, {name}:", phase["tokens"] / phase["busy_s"]))
    lines = [f"{'Experts':-^{WIDTH}}", *(f"{k:<40} {v:<10.2f}" for k, v in rows)]
    return "\n".join([*lines, "=" * WIDTH])


def _head(console: Console, s: Serving) -> None:
    m, r, v = s.model, s.requests, s.server
    source = r.source or r.format
    if r.path:
        source = f"{source}: {r.path}" if source and source != r.path else r.path
    mean = f"; mean {r.prompt.mean():,.0f} tokens in, {r.output.mean():,.0f} out"
    mean = "" if r.format == "fixed" else mean
    at_once = f"-np {v.slots} -b {v.batch} -ub {v.ubatch}"
    if v.kind == "vllm":
        at_once = f"{v.slots} sequences, {v.batch} tokens a pass"
    kv = s.runs[0].kv_tokens
    room = f"KV cache {kv:,} tokens, {format_bytes(kv * m.kv_bytes_per_token)}"
    client = f"; at most {v.max_concurrency} at once" if v.max_concurrency else ""
    warm = "" if v.warmup else "; no warm-up request"
    lines = [
        ("requests", f"{len(r):,}: {source}{mean}"),
        ("server", f"{v.kind} {at_once}; {room}{client}{warm}"),
        ("model", f"{m.name}, {len(m.moe_layers)} MoE layers x {m.n_experts} experts, all "
         f"{format_bytes(m.total_bytes)}"),
        *(("hardware", said(x)) for x in s.resolved.machines or (s.hardware,)),
    ]  # fmt: skip
    for key, text in lines:
        console.print(Text.assemble((f"{key:<9}", "bold"), text), soft_wrap=True)


def _table(console: Console, s: Serving) -> None:
    several_sizes = len({run.slots for run in s.runs if run.job.policy is not None}) > 1
    rates = len(s.asked.rates) > 1
    machines = len(s.resolved.machines) > 1
    good = bool(s.asked.goodput)
    columns = [
        *([Column("hardware", "left", name=True)] if machines else []),
        Column("mechanism", "left", name=True),
        Column("policy", "left", name=True),
        *([Column("slots")] if several_sizes else []),
        *([Column("rate")] if rates else []),
        Column("tok/s"),
        *([Column("goodput")] if good else []),
        Column("TTFT ms"),
        Column("P99", leaves=3),
        Column("TPOT ms"),
        Column("P99", leaves=4),
        Column("ITL ms", leaves=2),
        Column("hits", leaves=5),
        Column("GB/request", leaves=6),
        Column("wait s/request", leaves=7),
    ]
    rows = []
    for run in s.runs:
        d = run.to_json()
        head = [run.job.hardware.name] if machines else []
        head += [run.how, run.job.policy_name or ""]
        head += [f"{run.slots:,}"] if several_sizes else []
        head += [_rate(run.rate)] if rates else []
        b = d.get("bench")
        if b is None:
            rows.append(Row([*head, "out of memory", *[""] * (len(columns) - len(head) - 1)]))
            continue
        cells = [f"{b['output_throughput']:.2f}"]
        cells += [f"{b['request_goodput']:.3f}"] if good else []
        for metric in ("ttft", "tpot"):
            cells += [_ms(b, f"mean_{metric}_ms"), _ms(b, f"p99_{metric}_ms")]
        hits = d["hit_rate"]
        stall = d["stall_s_per_request"]
        cells += [
            _ms(b, "mean_itl_ms"),
            "" if hits is None else f"{hits:.1%}",
            f"{d['bytes_moved_per_request'] / 1e9:.2f}",
            "" if stall is None else f"{stall:.2f}",
        ]
        rows.append(Row([*head, *cells]))
    show(console, columns, rows)


def _ms(b: dict[str, Any], key: str) -> str:
    value = b.get(key)
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _rate(rate: float | None) -> str:
    return "file" if rate is None else f"{rate:g}"


def _knees(console: Console, s: Serving) -> None:
    """The highest rate that each configuration keeps up with."""
    for name, at in knees(s).items():
        told = "none of these" if at is None else f"{at:g} requests/s"
        console.print(Text(f"  {name} keeps up with {told}", style="dim"))
    console.print(Text("  keeps up: as many requests/s come out as go in, within 5 %", style="dim"))


def knees(s: Serving) -> dict[str, float | None]:
    """By configuration, the highest rate at which requests leave as fast as they come: the run
    lasts, but for one request's time at the lowest rate, within 5 % of what the arrivals do. None
    where none is."""
    found: dict[str, float | None] = {}
    alone: dict[str, float] = {}
    runs = [r for r in s.runs if r.bench is not None and r.rate is not None]
    for run in sorted(runs, key=lambda r: r.rate or 0):
        assert run.bench is not None and run.rate is not None
        name = run.name + (f", {run.slots} slots" if run.slots else "")
        b, per_request = run.record or {}, run.bench.total_output_tokens / run.bench.completed
        one = (b.get("mean_ttft_ms", 0) + b.get("mean_tpot_ms", 0) * (per_request - 1)) / 1e3
        found.setdefault(name, None)
        alone.setdefault(name, one)
        if run.bench.duration <= 1.05 * run.bench.completed / run.rate + alone[name]:
            found[name] = run.rate
    return found
