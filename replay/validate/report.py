"""A validation as Markdown and as a terminal table."""

from __future__ import annotations

from typing import Any

from replay.validate.score import main_speed

SPLIT = ("compute", "cpu", "transfer", "queueing")


def headline(report: dict[str, Any]) -> str:
    """How far off the simulator was, in one line."""
    o = report["overall"]
    if o["mape"] is None:
        return "nothing could be compared"
    tau = "-" if o["tau_mean"] is None else f"{o['tau_mean']:.2f}"
    equal = "counters equal in every cell" if o["counters_equal"] else "COUNTERS DIFFER"
    return (
        f"{o['cells']} cells: mean absolute error {o['mape']:.1%}, worst {o['worst']:.1%} "
        f"({o['worst_cell']}), mean Kendall's tau {tau}, {equal}"
    )


def to_markdown(report: dict[str, Any]) -> str:
    """``report.md``: verdict, table of cells, latencies, stalls, order of the policies."""
    machine = ", ".join(f"{k} {v}" for k, v in report["machine"].items() if _short(v))
    lines = [
        f"# Validation on {report['hardware']['gpu']}",
        "",
        f"**{headline(report)}.**",
        "",
        f"Predicted from {report['hardware']['file']} alone, before the first measurement. "
        f"Backend {report['backend']}; {machine}; uvmsim {report['uvmsim']}.",
        "",
        *(f"- note: {n}" for n in report["notes"]),
    ]
    if report["backend"] == "host":
        lines += ["", "The host backend has no GPU: its times are memcpy's and mean nothing."]
    lines += ["", "| target | wanted | found | reached |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(cells)} |" for cells in verdicts(report)]
    sections = (
        ("Tokens per second", SPEEDS, report["rows"]),
        ("Latency of a decoded token, ms (predicted / measured)", LATENCY, report["rows"]),
        ("Where the time went, s (predicted / measured)", STALLS, report["rows"]),
    )
    for title, columns, rows in sections:
        lines += ["", f"## {title}", "", *_md_table(columns, rows)]
    faults = [
        r for r in report["rows"] if r["predicted"].get("faults") or r["measured"].get("faults")
    ]
    if faults:
        lines += ["", "## Page faults (predicted / counted)", "", *_md_table(FAULTS, faults)]
        seen = report.get("fault_recording")
        if seen:
            words = ", ".join(f"{k} {v}" for k, v in seen.items() if _short(v))
            lines += ["", f"Counted in a run of its own, which is not timed; recording: {words}."]
    cells = (report.get("bounds") or {}).get("cells") or {}
    if cells:
        rows = [r | {"bound": cells[r["cell"]]} for r in report["rows"] if r["cell"] in cells]
        lines += ["", "## The engine against its bounds, s", "", *_md_table(BOUNDS, rows)]
    lines += ["", "## Order of the policies", "", *_md_table(ORDER, report["overall"]["groups"])]
    if (report.get("plot")) is not None:
        lines += ["", f"![predicted against measured]({report['plot']})"]
    return "\n".join(lines) + "\n"


def verdicts(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was wanted and what came out."""
    o, t = report["overall"], report["targets"]
    names = (
        ("mean absolute percentage error", "mape", f"at most {t['mape']:.0%}", "mape", ".1%"),
        ("worst cell", "worst", f"at most {t['worst']:.0%}", "worst", ".1%"),
        ("mean Kendall's tau", "tau_mean", f"at least {t['tau']:g}", "tau", ".2f"),
    )
    made = []
    for name, key, wanted, mark, form in names:
        value = o[key]
        found = "-" if value is None else format(value, form)
        made.append((name, wanted, found, _yes(o["reached"][mark])))
    equal = "equal" if o["counters_equal"] else "differ"
    made.append(("counters", "equal", equal, _yes(o["counters_equal"])))
    lost = report.get("bounds") or {}
    for what, key, limit in ENGINE:
        if value := lost.get(key):
            form = ".2%" if key == "overhead" else ".2f"
            shown = f"median {value['median']:{form}}, worst {value['worst']:{form}}"
            reached = _yes(value["worst"] <= limit)
            made.append(
                (f"{what} ({value['cells']} cells)", f"at most {limit:{form}}", shown, reached)
            )
    return made


ENGINE = (
    ("time over the larger of copies at the pinned peak and kernels, transfer-bound with prefetch",
     "over_bound", 1.05),
    ("share of the time that is neither kernels nor copies at the pinned peak, without prefetch",
     "overhead", 0.05),
)  # fmt: skip
"""What is asked of the engine: the line's words, the key in ``bounds``, the limit."""


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "NO"


def _short(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def _pair(a: Any, b: Any) -> str:
    return f"{_number(a)} / {_number(b)}"


def _state(r: dict[str, Any]) -> str:
    if r.get("unequal"):
        return "; ".join(f"{k}: {p:,} / {m:,}" for k, (p, m) in r["unequal"].items())
    return f"{r['status']}: {r['why']}" if "why" in r else r["status"]


def _latency(key: str) -> Any:
    return lambda r: _pair(
        *(r[side].get("token_latency_ms", {}).get(key) for side in ("predicted", "measured"))
    )


def _stall(key: str) -> Any:
    return lambda r: _pair(
        *((r[side].get("time_split_s") or {}).get(key) for side in ("predicted", "measured"))
    )


def _spread(r: dict[str, Any]) -> str:
    values = [v for v in r["measured"].get("repeats", []) if v]
    if len(values) < 2:
        return "-"
    return f"{(max(values) - min(values)) / min(values):.1%}"


def _fault(key: str) -> Any:
    return lambda r: _pair(
        *((r[side].get("faults") or {}).get(key) for side in ("predicted", "measured"))
    )


CELL = (
    ("trace", lambda r: r["trace"]),
    ("mode", lambda r: r["mode"]),
    ("resident", lambda r: r["size"] or "-"),
    ("policy", lambda r: r["policy"] or "-"),
)
SPEEDS = (
    *CELL,
    ("hit rate", lambda r: _share(r["predicted"])),
    ("predicted", lambda r: _number(main_speed(r["predicted"]), 4)),
    ("measured", lambda r: _number(main_speed(r["measured"]), 4)),
    ("error", lambda r: _percent(r.get("error"))),
    ("spread of runs", _spread),
    ("host busy", lambda r: _busy(r["measured"])),
    ("prefill error", lambda r: _percent(r.get("prefill_error"))),
    ("counters and outputs", _state),
)
LEAVING = ("hit rate", "prefill error", "host busy", "spread of runs")
"""Columns that a narrow terminal has no room for, the last one first."""
LATENCY = (*CELL, *((p, _latency(p)) for p in ("p10", "p50", "p90", "p99")))
STALLS = (*CELL, *((s, _stall(s)) for s in SPLIT))
BOUNDS = (
    *CELL,
    ("copies at the peak", lambda r: _number(r["bound"]["copy_s"])),
    ("kernels", lambda r: _number(r["bound"]["compute_s"])),
    ("measured", lambda r: _number(r["bound"]["time_s"])),
    ("over the larger", lambda r: _number(r["bound"].get("over_bound"))),
    ("neither", lambda r: _percent(r["bound"].get("overhead"))),
)
FAULTS = (
    *CELL,
    *((k.replace("_", " "), _fault(k)) for k in ("fault_groups", "bytes_in", "bytes_out")),
)
ORDER = (
    ("trace", lambda g: g["trace"]),
    ("mode", lambda g: g["mode"]),
    ("resident", lambda g: g["size"] or "-"),
    ("policies", lambda g: str(g["policies"])),
    ("tau", lambda g: _number(g["tau"])),
    ("pairs the wrong way round", lambda g: f"{g['discordant']} of {g['pairs']}"),
    ("their widest gap", lambda g: f"{g['widest_discordant']:.1%}"),
)


def _busy(measured: dict[str, Any]) -> str:
    """Share of the run that the host spent deciding and queueing: near 100 % it was the bound."""
    if "host_issue_s" not in measured:
        return "-"
    return f"{measured['host_issue_s'] / measured['time_s']:.0%}"


def _share(part: dict[str, Any]) -> str:
    c = part.get("counters")
    return f"{c['hits'] / c['accesses']:.1%}" if c and c["accesses"] else "-"


def _md_table(columns: Any, rows: list[dict[str, Any]]) -> list[str]:
    head = [name for name, _ in columns]
    made = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for r in rows:
        made.append(f"| {' | '.join(make(r).replace('|', '/') for _, make in columns)} |")
    return made


def print_report(report: dict[str, Any]) -> None:
    """The table of cells and the verdict on standard output."""
    from rich.text import Text

    from uvmsim.report.fit import Column, Row, show
    from uvmsim.report.progress import wide

    console = wide()
    last = len(SPEEDS) - 1
    columns = [
        Column(
            name, "left" if i < 4 else "right",
            leaves=LEAVING.index(name) + 1 if name in LEAVING else 0, name=i < 4 or i == last,
        )
        for i, (name, _) in enumerate(SPEEDS)
    ]  # fmt: skip
    rows = [
        Row([Text(make(r)) for _, make in SPEEDS], "" if r["status"] == "ok" else "red")
        for r in report["rows"]
    ]
    show(
        console, columns, rows,
        title=f"predicted from {report['hardware']['file']}, measured with {report['backend']}",
        title_justify="left", title_style="bold", header_style="bold", padding=(0, 1, 0, 0),
    )  # fmt: skip
    for name, wanted, found, reached in verdicts(report):
        console.print(
            Text(f"  {name}: {found} (wanted: {wanted})", style="red" if reached == "NO" else "")
        )
    for note in report["notes"]:
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)
    console.print(Text(headline(report), style="bold"), soft_wrap=True)
