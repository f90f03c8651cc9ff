"""Fault traces on the terminal: what one is, and its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from traces.faults import FaultTrace
from traces.routing.tables import console


def describe_faults(t: FaultTrace) -> dict[str, Any]:
    """What a fault trace is, as plain JSON types; sizes in bytes."""
    codes, words = t.words("kind")
    counts = {w: int((codes == i).sum()) for i, w in enumerate(words)}
    time = t.numbers("time_ns")
    meta = {k: v for k, v in t.meta.items() if k not in ("schema", "version")}
    return {
        "file": str(t.path) if t.path else None,
        "file_bytes": t.path.stat().st_size if t.path else None,
        "record": "faults",
        "version": t.meta.get("version"),
        "complete": t.complete,
        "events": t.n_rows,
        "span_ns": int(time.max() - time.min()),
        "kinds": {k: n for k, n in counts.items() if n},
        "columns": [n for n in t.table.column_names if t.has(n)],
        "processes": sorted(set(t.numbers("process")[t.present("process")].tolist())),
        "meta": meta,
        "sha256": t.sha256,
    }


def print_fault_description(d: dict[str, Any]) -> None:
    """Print what `describe_faults` returns."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: Any) -> None:
        if value not in (None, "", [], {}):
            table.add_row(name, str(value))

    row("file", d["file"])
    row("size", f"{d['file_bytes'] / 1e6:,.2f} MB" if d["file_bytes"] is not None else None)
    row("record", f"faults (version {d['version']})")
    row("state", "complete" if d["complete"] else "INCOMPLETE: the recording was cut off")
    row("events", f"{d['events']:,} in {_time(d['span_ns'])}")
    for kind, n in d["kinds"].items():
        row(f"  {kind}", f"{n:,}")
    row("columns", ", ".join(d["columns"]))
    row("processes", ", ".join(map(str, d["processes"][:8])))
    meta = dict(d["meta"])
    recording = meta.pop("recording", {})
    notes = [*meta.pop("notes", []), *recording.get("notes", [])]
    if "dropped" in recording:
        row("records", f"{recording['delivered']:,} handed over, {recording['dropped']:,} lost")
    for key, value in sorted((meta.pop("machine", None) or {}).items()):
        row(f"  {key}", value)
    for key, value in sorted(meta.items()):
        row(key, value)
    for note in notes:
        row("note", note)
    row("sha256", d["sha256"])
    console().print(table)


def print_fault_statistics(named: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """The tables of `traces.faults.stats`, one column a trace."""
    out = console()
    names, stats = [n for n, _ in named], [s for _, s in named]

    def table(title: str, rows: Sequence[tuple[str, Sequence[str | None]]]) -> None:
        rows = [r for r in rows if any(v is not None for v in r[1])]
        if not rows:
            return
        t = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        t.add_column("", no_wrap=True, min_width=30)
        for n in names:
            t.add_column(n, justify="right", no_wrap=True)
        for label, values in rows:
            t.add_row(label, *("-" if v is None else v for v in values))
        out.print(t)
        out.print()

    def row(label: str, form: Any, *path: str) -> tuple[str, list[str | None]]:
        found = [_dig(s, path) for s in stats]
        return label, [None if v is None else form(v) for v in found]

    kinds = sorted({k for s in stats for k in s["kinds"]})
    lost = [
        row("records lost, the tracer's count", _count, "missing", "dropped"),
        row("handed over, not in the trace", _count, "missing", "unwritten"),
        row("moved to the GPU unseen, at least", _size, "missing", "bytes_in"),
        row("moved from the GPU unseen, at least", _size, "missing", "bytes_out"),
        row("2 MiB blocks faulted on, no arrival", _count, "missing", "blocks_without_arrival"),
        row("looks at the page table", _count, "missing", "looks", "looks"),
        row("came by the page table", _size, "missing", "looks", "came"),
        row("  of it without a record", _size, "missing", "looks", "came_unrecorded"),
        row("went by the page table", _size, "missing", "looks", "went"),
        row("  of it without a record", _size, "missing", "looks", "went_unrecorded"),
    ]
    table("Events", [row("all", _count, "events"), row("time", _time, "span_ns")])
    table("Missing", lost)
    table("Events a kind", [row(k, _count, "kinds", k, "events") for k in kinds])
    table("Events per second", [row(k, _rate, "kinds", k, "per_s") for k in kinds])
    table("Distinct 2 MiB blocks", [row(k, _count, "kinds", k, "blocks") for k in kinds])
    life = ("chunks", "reuse", "lifetime_ns")
    table(
        "Physical chunks",
        [
            row("activations", _count, "chunks", "activations"),
            row("services (chunk_access)", _count, "chunks", "accesses"),
            row("services an activation", _number, "chunks", "accesses_per_activation"),
            row("activations : evictions", _number, "chunks", "activate_evict_ratio"),
            row("distinct chunks", _count, "chunks", "distinct_chunks"),
            row("activations a chunk", _number, "chunks", "activations_per_chunk"),
            row("services a chunk", _number, "chunks", "accesses_per_chunk"),
            row("reused by another block", _count, "chunks", "reuse", "by_another_block"),
            row("reused by the same block", _count, "chunks", "reuse", "by_the_same_block"),
            *(row(f"  lifetime, {q}", _time, *life, q) for q in ("p10", "p50", "p90", "mean")),
        ],
    )
    table(
        "Seen before (share of events)",
        [
            row("blocks activated again", _share, "refaults", "blocks", "share"),
            row("pages faulted on again", _share, "refaults", "pages", "share"),
        ],
    )
    for key, title in (
        ("gpu_fault_pages", "GPU faults: runs of consecutive 4 KiB pages"),
        ("cpu_fault_pages", "CPU faults: runs of consecutive 4 KiB pages"),
        ("activated_blocks", "Activations: runs of consecutive 2 MiB blocks"),
    ):
        steps: list[str] = next((list(s[key]["steps"]) for s in stats if s[key]), [])
        table(
            title,
            [
                row("runs", _count, key, "runs"),
                row("mean run", _number, key, "mean_run"),
                row("median run", _number, key, "median_run"),
                row("longest run", _count, key, "longest_run"),
                *(row(f"  step {n}", _share, key, "steps", n) for n in steps),
            ],
        )
    table(
        "Bytes",
        [
            (f"{label} {name}", row("", form, "bytes", way, field)[1])
            for way, label in (("in", "to the GPU,"), ("out", "from the GPU,"))
            for name, form, field in (
                ("total", _size, "bytes"),
                ("a second", _size, "bytes_per_s"),
                ("a second of transfer", _size, "bytes_per_busy_s"),
                ("a transfer", _size, "mean_bytes"),
            )
        ],
    )
    causes = sorted(
        {(w, c) for s in stats for w, v in (s["bytes"] or {}).items() for c in v["causes"]}
    )
    table(
        "Bytes by cause",
        [row(f"{w}: {c}", _size, "bytes", w, "causes", c, "bytes") for w, c in causes],
    )
    table(
        "Evictions",
        [
            row("events", _count, "evictions", "events"),
            row("counted from", str, "evictions", "source"),
            row("a second", _rate, "evictions", "per_s"),
            row("bytes", _size, "evictions", "bytes"),
            row("gap, median", _time, "evictions", "gap_ns", "p50"),
            row("gap, longest", _time, "evictions", "gap_ns", "max"),
        ],
    )


def _dig(d: Any, path: Sequence[str]) -> Any:
    for key in path:
        if d is None:
            return None
        d = d.get(key)
    return d


def _count(n: int) -> str:
    return f"{n:,}"


def _rate(x: float) -> str:
    return f"{x:,.1f}"


def _number(x: float) -> str:
    return f"{x:,.3f}"


def _share(x: float) -> str:
    return f"{x:.4f}"


def _time(ns: float) -> str:
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if abs(ns) >= scale:
            return f"{ns / scale:,.3f} {unit}"
    return f"{ns:,.0f} ns"


def _size(n: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:,.3f} {unit}"
    return f"{n:,.0f} B"
