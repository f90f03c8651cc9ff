"""Terminal tables of check findings and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from traces.files.schema import PREDICTORS
from traces.routing.check import Finding

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def console() -> Console:
    return Console(soft_wrap=True, highlight=False)


def print_findings(findings: Sequence[Finding], name: str) -> None:
    """One paragraph a finding."""
    out = console()
    for f in findings:
        colour = COLOURS[f.severity]
        out.print(f"[{colour}]{f.severity}[/] [bold]{f.code}[/] x{f.count:,}: {f.message}")
        if f.first:
            out.print("    first: " + ", ".join(f"{k} {v}" for k, v in f.first.items()))
        out.print(f"    {f.advice}")
    errors = sum(f.severity == "error" for f in findings)
    verdict = "[green]nothing wrong found[/]" if not findings else f"{errors} errors"
    warnings = sum(f.severity == "warning" for f in findings)
    if findings:
        verdict += f", {warnings} warnings, {len(findings) - errors - warnings} notes"
    out.print(f"{name}: {verdict}")


def print_statistics(named: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """The locality tables, one column a trace."""
    out = console()
    names = [n for n, _ in named]
    stats = [s for _, s in named]

    def table(title: str, rows: Sequence[tuple[str, Sequence[Any]]], form: str) -> None:
        rows = [r for r in rows if any(v is not None for v in r[1])]
        if not rows:
            return
        t = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        t.add_column("", no_wrap=True, min_width=26)
        for n in names:
            t.add_column(n, justify="right", no_wrap=True)
        for label, values in rows:
            t.add_row(label, *("-" if v is None else format(v, form) for v in values))
        out.print(t)
        out.print()

    def keyed(key: str, label: str, within: str | None = None) -> list[tuple[str, list[Any]]]:
        dicts = [s[key][within] if within else s[key] for s in stats]
        keys = sorted({k for d in dicts for k in d}, key=lambda k: float(k.rstrip("%")))
        return [(label.format(k), [d.get(k) for d in dicts]) for k in keys]

    table(
        "Trace",
        [(n, [s[n] for s in stats]) for n in ("tokens", "sequences", "n_experts", "top_k")]
        + [("layers", [len(s["layers"]) for s in stats])],
        ",d",
    )
    by_layer = [[x for x in s["overlap_by_layer"] if x is not None] for s in stats]
    table(
        "Overlap of a token's experts with those d tokens before (share of top-k)",
        [
            ("random (k/N)", [s["random"] for s in stats]),
            *keyed("overlap", "d = {}"),
            ("d = 1, lowest layer", [min(x) if x else None for x in by_layer]),
            ("d = 1, highest layer", [max(x) if x else None for x in by_layer]),
        ],
        ".4f",
    )
    table(
        "Distinct experts a layer in a window of W tokens",
        keyed("window_distinct", "W = {}"),
        ".2f",
    )
    table(
        "Reuse interval of an expert, cumulative share of accesses",
        [
            *keyed("reuse", "<= {} tokens", "cumulative"),
            ("first use in its sequence", [s["reuse"]["first"] for s in stats]),
        ],
        ".4f",
    )
    table(
        "Skew of expert popularity",
        [
            *keyed("skew", "hottest {} take", "top"),
            ("entropy / log N", [s["skew"]["entropy"] for s in stats]),
            ("Gini", [s["skew"]["gini"] for s in stats]),
            ("Zipf slope, top half", [s["skew"]["zipf"] for s in stats]),
            ("never used", [s["skew"]["never"] for s in stats]),
        ],
        ".4f",
    )
    table(
        "Distinct experts a layer, B sequences decoding together",
        keyed("batch_union", "B = {}"),
        ".2f",
    )
    for name, s in named:
        if s["step_union"]:
            table_ = Table(
                title=f"Distinct experts a layer in steps of several tokens: {name}",
                title_justify="left",
                title_style="bold",
                box=None,
                pad_edge=False,
            )
            for head in ("tokens a step", "steps", "distinct", "share of N"):
                table_.add_column(head, justify="right")
            for u in s["step_union"]:
                low, high = u["tokens"]
                table_.add_row(
                    f"{low}" if low == high else f"{low} to {high}",
                    f"{u['steps']:,}",
                    f"{u['distinct']:.2f}",
                    f"{u['distinct'] / s['n_experts']:.3f}",
                )
            out.print(table_)
            out.print()
    _print_loops(out, named)
    recalls = [s.get("recall", {}) for s in stats]
    of = (
        ("at_k", "{}, k guesses"),
        ("at_2k", "{}, 2k guesses"),
        ("new_at_2k", "{}, 2k, new experts"),
    )
    table(
        "Recall of a layer's experts by guesses made before its router ran",
        [
            (label.format(p), [r[p][key] if p in r else None for r in recalls])
            for p in PREDICTORS
            for key, label in of
        ],
        ".4f",
    )
    if all("hit_rate" in s for s in stats):
        table(
            "Hit rate of per-layer pools of a quarter of the experts, emptied for each sequence",
            [(p.upper(), [s["hit_rate"][p] for s in stats]) for p in ("lru", "lfu")],
            ".4f",
        )


def _print_loops(out: Console, named: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Looped tokens of each trace, and its worst sequences."""
    for name, s in named:
        found = s.get("loops")
        if not found or not found["share"]:
            continue
        worst = sorted(found["by_sequence"].items(), key=lambda x: -x[1])[:8]
        told = ", ".join(f"{seq}: {share:.0%}" for seq, share in worst if share > 0)
        out.print(
            f"[bold]Degenerate loops: {name}[/]\n{found['share']:.1%} of the tokens (told by "
            f"{found['told_by']}); {found['sequences']} sequences of {found['tokens']:,} tokens have "
            f"over 5%\nby sequence: {told}\n"
        )
