"""What a search found, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from uvmsim.report.fit import Column, Row, show
from uvmsim.report.progress import wide
from uvmsim.studies.search.arena import Score
from uvmsim.studies.search.cases import Case
from uvmsim.studies.search.split import PARTS
from uvmsim.studies.search.study import Line, Search

LOOK: dict[str, Any] = {
    "title_justify": "left",
    "title_style": "bold",
    "header_style": "bold",
    "padding": (0, 1, 0, 0),
}


def print_search(s: Search, console: Console | None = None) -> None:
    """What was searched; the winner beside what `uvmsim compare` shows; what of it pays; notes."""
    console = console or wide()
    for case in s.cases:
        _said(console, "trace", f"{case.name}: {_tokens(case)}; {_pool(case)}")
    sp = s.space
    _said(
        console, "searched",
        f"{s.trials:,} of: {len(sp.evictions)} that evict, {len(sp.prefetches)} that prefetch, "
        f"{sp.numbers} parameters",
    )  # fmt: skip
    console.print()
    _policies(console, s, s.lines, PARTS, "")
    _ablation(console, s)
    for case, lines in s.transfers:
        title = f"on {case.name}, which nothing was chosen by; {_pool(case)}"
        _policies(console, s, lines, ("transfer",), title)
    for note in s.notes:
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)
    for command in s.commands:
        console.print(Text(command, style="bold"), soft_wrap=True)
    if s.folder:
        console.print(Text(f"wrote {s.folder}/best.toml; the same command goes on from there"))


def _said(console: Console, key: str, text: str) -> None:
    console.print(Text.assemble((f"{key:<9}", "bold"), text), soft_wrap=True)


def _tokens(case: Case) -> str:
    return ", ".join(f"{part} {n:,}" for part, n in case.tokens.items()) + " tokens"


def _pool(case: Case) -> str:
    sizes = ", ".join(f"{n:,} ({share})" for n, share in zip(case.slots, case.shares, strict=True))
    return f"{sizes} of {case.experts:,} experts resident"


def _policies(
    console: Console, s: Search, lines: Sequence[Line], parts: Sequence[str], title: str
) -> None:
    last = parts[-1]
    rated = [line for line in lines if not line.bound and line.scores[last].value is not None]
    best = max(rated, key=lambda line: line.scores[last].value or 0.0, default=None)
    columns = [Column("policy", "left", name=True)]
    columns += [Column(f"{part} t/s", leaves=0 if part == last else 2) for part in parts]
    columns += [Column(f"{part} hits", leaves=1 if part == last else 3) for part in parts]
    rows = []
    for i, line in enumerate(lines):
        mark = "> " if line is best else "  "
        told = " (found)" if i == 0 else " (bound)" if line.bound else ""
        cells = [mark + line.policy + told]
        cells += [_rate(line.scores[part]) for part in parts]
        cells += [_hits(line.scores[part]) for part in parts]
        style = "bold cyan" if line is best else "dim" if line.bound else ""
        rows.append(Row([Text(c) for c in cells], style))
    show(console, columns, rows, title=Text(title) if title else None, **LOOK)


def _ablation(console: Console, s: Search) -> None:
    if not s.effects:
        return
    whole = s.lines[0].scores["test"]
    columns = [Column("without", "left", name=True), Column("test t/s"), Column("", "right")]
    columns += [Column("test hits", leaves=1), Column("", leaves=1)]
    rows = []
    for e in s.effects:
        cells = [e.what, _rate(e.score), _change(e.score.speed, whole.speed), _hits(e.score)]
        points = ""
        if e.score.hits is not None and whole.hits is not None:
            points = f"{100 * (e.score.hits - whole.hits):+.1f} points"
        rows.append(Row([Text(c) for c in [*cells, points]]))
    show(console, columns, rows, title=Text("what of it pays: the test part without"), **LOOK)


def _rate(score: Score) -> str:
    if score.speed is None:
        return "failed" if score.error else "-"
    return f"{score.speed:,.0f}" if score.speed >= 100 else f"{score.speed:.1f}"


def _hits(score: Score) -> str:
    return "-" if score.hits is None else f"{score.hits:.1%}"


def _change(now: float | None, whole: float | None) -> str:
    return "" if not now or not whole else f"{100 * (now / whole - 1):+.1f} %"
