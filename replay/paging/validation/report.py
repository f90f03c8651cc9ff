"""A paging validation as a table, as Markdown, and drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from replay.calibrate.report import titled_table
from uvmsim.report.progress import wide

COUNTS = (
    ("bytes in", "bytes_in"), ("by demand", "demand_bytes"), ("by the tree", "tree_bytes"),
    ("batches", "batches"), ("services", "services"), ("copies", "operations"),
)  # fmt: skip


def lines(row: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, predicted, the driver's, error) of a run."""
    p, d, e = row["predicted"], row["measured"]["driver"], row["errors"]
    made = [
        (name, _count(p[key], key), _count(d[key], key), _percent(e.get(key)))
        for name, key in COUNTS
    ]
    steps = np.median(np.array(row["measured"]["step_ns"], np.float64), axis=0)
    made.append(("time", _ms(sum(p["step_ns"])), _ms(float(steps.sum())), _percent(e["time"])))
    made.append(("time until a step, worst", "", "", _percent(e["curve"])))
    for name, value in row["given_faults"].items():
        made.append((f"given the faults: {name}", "", "", _percent(value)))
    return made


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Every run's table and what is met."""
    console = console or wide()
    for row in report["rows"]:
        if row["status"] != "ok":
            console.print(Text(f"{row['run']}: failed: {row['why']}"), soft_wrap=True)
            continue
        table = titled_table(
            f"{row['run']} ({row['kind']})", "what", "predicted", "driver", "error"
        )
        for line in lines(row):
            table.add_row(*line)
        console.print(table)
        for problem in row["measured"]["problems"]:
            console.print(Text(f"problem: {problem}"), soft_wrap=True)
    for what, met in report["overall"].get("met", {}).items():
        console.print(f"{what}: {'met' if met else 'not met'}")


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a file."""
    made = ["# The page model against the driver", ""]
    hw = report["hardware"]
    made += [f"Predicted from {hw['file']} ({hw['gpu']}) with uvmsim {report['uvmsim']}.", ""]
    if report.get("plot"):
        made += [f"![Time until each step]({report['plot']})", ""]
    for row in report["rows"]:
        made += [f"## {row['run']} ({row['kind']})", ""]
        if row["status"] != "ok":
            made += [f"Failed: {row['why']}", ""]
            continue
        made += ["| | predicted | driver | error |", "|---|---|---|---|"]
        made += ["| " + " | ".join(line) + " |" for line in lines(row)]
        made += [""]
    met = report["overall"].get("met", {})
    made += [f"- {k}: {'met' if v else 'not met'}" for k, v in met.items()]
    return "\n".join(made) + "\n"


def draw(report: dict[str, Any], path: str) -> bool:
    """The time until each step, predicted and measured; False where no run succeeded."""
    rows = [r for r in report["rows"] if r["status"] == "ok"]
    if not rows:
        return False
    from uvmsim.report.plots import figure, save

    fig, axes = figure(4.2 * len(rows), 3.4, ncols=len(rows))
    for ax, row in zip(np.atleast_1d(axes).reshape(-1), rows, strict=True):
        for run in row["measured"]["step_ns"]:
            ax.plot(np.cumsum(run) / 1e6, color="0.6", lw=0.8)
        ax.plot(np.cumsum(row["predicted"]["step_ns"]) / 1e6, color="C3", lw=1.4, label="predicted")
        ax.set_title(row["run"], fontsize=9)
        ax.set_xlabel("step")
        ax.set_ylabel("ms since the first")
        ax.legend(fontsize=8)
    save(fig, path)
    return True


def _count(value: int, key: str) -> str:
    return f"{value / 1e6:,.1f} MB" if "bytes" in key else f"{value:,}"


def _ms(ns: float) -> str:
    return f"{ns / 1e6:,.1f} ms"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1%}"
