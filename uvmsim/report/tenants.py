"""What neighbours on one GPU cost each other, as a terminal table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from uvmsim.report.fit import Column, Row, show
from uvmsim.runs.outcome import Outcome

COLUMNS = (
    Column("policy", "left", name=True),
    Column("model's trace", "left", name=True),
    Column("t/s"),
    Column("alone", leaves=3),
    Column("slower", leaves=6),
    Column("own passes", leaves=5),
    Column("hit rate", leaves=4),
    Column("alone ", leaves=2),
)


def print_tenants(console: Console, rows: list[tuple[Outcome, dict[str, Any]]]) -> None:
    """A line a policy, pool size and model; nothing where nobody has neighbours."""
    lines = []
    for run, row in rows:
        for i, t in enumerate(row.get("tenants", ())):
            name = f"{run.policy}, {row['slots']:,} slots" if not i else ""
            lines.append(
                Row([
                    Text(name), Text(t["name"]), _rate(t["tokens_per_s"]),
                    _rate(t["alone_tokens_per_s"]), f"{t['slowdown']:.2f}x",
                    f"{t['own_slowdown']:.2f}x", _percent(t["hit_rate"]),
                    _percent(t["alone_hit_rate"]),
                ])
            )  # fmt: skip
    if not lines:
        return
    show(
        console, COLUMNS, lines, title=Text("each against being alone with all the slots"),
        title_justify="left", title_style="bold", header_style="bold", padding=(0, 1, 0, 0),
    )  # fmt: skip
    console.print(
        Text(
            "  slower: time to its tokens, others' turns included; own passes: what others cost it in "
            "the pool and on the link",
            style="dim",
        ),
        soft_wrap=True,
    )


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
